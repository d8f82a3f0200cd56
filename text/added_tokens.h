// text/added_tokens.h: tokenizer.json's "added_tokens": tokens that are found in the text before
// the model sees it. Immutable and thread-safe.
#pragma once

#include <array>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "common/ids.h"
#include "text/bpe.h"
#include "text/json_reader.h"
#include "text/normalizer.h"

namespace switchyard {

// A part of the text: one added token, or what is still to be tokenized.
struct TextSegment {
  std::optional<TokenId> token;
  TextRange range;
};

class AddedTokens {
 public:
  struct Token {
    std::string content;
    bool special = false;
    bool single_word = false;  // only where no word character touches it
    bool lstrip = false;       // takes the white space before it along
    bool rstrip = false;       // and after it
    bool normalized = false;   // is looked for after normalization
  };

  static absl::StatusOr<AddedTokens> Parse(std::optional<Json> json, const BpeModel& model,
                                           const Normalizer& normalizer);

  // Cuts text at tokens with `normalized` as given; the longest token wins at each place.
  absl::StatusOr<std::vector<TextSegment>> Split(std::string_view text, bool normalized) const;

  const std::map<TokenId, Token>& tokens() const { return tokens_; }
  bool strips() const;  // a token of any size may take white space along

 private:
  // A trie over bytes, walked from each position of the text.
  class Matcher {
   public:
    void Add(std::string_view pattern, TokenId token);
    // How many bytes of `text` no pattern begins at.
    size_t Skip(std::string_view text) const;
    // The longest pattern at the start of `text`: its token and its length.
    std::optional<std::pair<TokenId, size_t>> LongestAt(std::string_view text) const;

   private:
    absl::flat_hash_map<uint64_t, uint32_t> edges_;  // node << 8 | byte -> node
    absl::flat_hash_map<uint32_t, TokenId> ends_;    // node -> token
    uint32_t nodes_ = 1;
    std::array<bool, 256> first_bytes_ = {};
  };

  explicit AddedTokens(Regex word) : word_(std::move(word)) {}
  absl::StatusOr<bool> TouchesWord(std::string_view text, TextRange range) const;

  Regex word_;  // one word character
  std::map<TokenId, Token> tokens_;
  Matcher matchers_[2];  // by Token::normalized
};

}  // namespace switchyard
