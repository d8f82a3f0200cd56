// text/bpe.h: tokenizer.json's "model": a BPE vocabulary and its ranked merges.
// Source: Sennrich et al. 2016, "Neural Machine Translation of Rare Words with Subword Units".
// Immutable and thread-safe.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/status/statusor.h"
#include "common/ids.h"
#include "text/json_reader.h"
#include "text/merge_table.h"

namespace switchyard {

constexpr TokenId kTokenIdMax = (1 << 24) - 1;  // bounds the tables by id; real ones are < 2^19

class BpeModel {
 public:
  // Working memory of Encode, kept between words. One per thread and model.
  struct Scratch {
    struct Node {
      TokenId token;
      int32_t previous, next;  // -1: none
      MergeRule rule;          // of this one and the next
    };
    struct Merged {
      TokenId token;
      int32_t begin;  // its first symbol
    };
    // What short words became: most words of a text come again. A word has one place, by its hash.
    struct Known {
      static constexpr size_t kBytesMax = 22, kTokensMax = 6;
      uint8_t bytes = 0, tokens = 0;  // 0 bytes: the place is empty
      char word[kBytesMax];
      TokenId ids[kTokensMax];
    };
    std::vector<TokenId> symbols;  // of a word, before merges
    std::vector<Node> nodes;
    std::vector<uint64_t> heap;  // rank << 32 | node
    std::vector<Merged> merged;
    std::vector<Known> known;
  };

  static absl::StatusOr<BpeModel> Parse(Json json);

  // Appends the tokens of `word`, valid UTF-8 of less than 2^31 characters. Linear in its length,
  // but O(n log n) for merges that no training makes (local_).
  void Encode(std::string_view word, Scratch* scratch, std::vector<TokenId>* ids) const;

  std::optional<TokenId> Find(std::string_view token) const;
  // Whether each byte has a token, as a character of the byte alphabet or as <0xHH>: then no
  // character is dropped, and none joins others as unknown.
  bool HasByteAlphabet() const;
  bool HasByteFallback() const;
  // By id; null data where the vocabulary has a hole.
  const std::vector<std::string_view>& tokens() const { return tokens_; }
  // Entries; differs from tokens().size() if there are holes.
  size_t size() const { return ids_.size(); }

 private:
  absl::Status ReadVocab(Json json);
  absl::Status ReadMerges(Json json);
  absl::Status ReadOptions(Json json);
  absl::Status AddMerge(std::string_view left, std::string_view right, uint32_t rank);
  void FillCharacters();
  void EncodePart(std::string_view part, Scratch* scratch, std::vector<TokenId>* ids) const;
  void EncodeKnown(std::string_view word, Scratch* scratch, std::vector<TokenId>* ids) const;
  void EncodeNew(std::string_view word, Scratch* scratch, std::vector<TokenId>* ids) const;
  // The token that is this one character, or −1.
  TokenId TokenOf(std::string_view character) const;
  bool MayJoin(TokenId left, TokenId right) const;
  bool AppendByteTokens(std::string_view character, std::vector<TokenId>* symbols) const;
  void MergeShort(std::span<TokenId> symbols, std::vector<TokenId>* ids) const;
  void MergeLong(Scratch* scratch, std::vector<TokenId>* ids) const;
  void MergeWindow(std::span<const TokenId> symbols, Scratch* scratch) const;

  std::unique_ptr<char[]> arena_;  // the tokens' bytes, which the views below point into
  std::vector<std::string_view> tokens_;
  absl::flat_hash_map<std::string_view, TokenId> ids_;
  MergeTable merges_;
  // Each token is made by one merge at most, from parts that lower ranks make.
  bool local_ = true;
  enum Role : uint8_t { kMade = 1, kPart = 2 };
  std::vector<uint8_t> roles_;        // of each token, in merges
  std::vector<TokenId> byte_tokens_;  // <0x00> … <0xFF>, -1 where absent
  std::vector<TokenId> characters_;   // by code point below 2^16, -1 where absent
  // Neighbours within a token that merges make, by their characters' tokens: no merge ever crosses
  // the place between two characters that are not here.
  absl::flat_hash_set<std::pair<TokenId, TokenId>> joined_;
  std::optional<TokenId> unknown_;
  bool fuse_unknown_ = false;
  bool byte_fallback_ = false;
  bool ignore_merges_ = false;
};

}  // namespace switchyard
