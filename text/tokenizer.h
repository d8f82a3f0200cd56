// text/tokenizer.h: text to token ids and back, exactly as the checkpoint's tokenizer.json says.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "common/ids.h"
#include "text/text_assembler.h"

namespace switchyard {

// Immutable and thread-safe after Load.
class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  // `path`: a tokenizer.json, or a directory that holds one. Errors: kNotFound; kInvalidArgument
  // names the component, what it says and what is supported.
  static absl::StatusOr<std::unique_ptr<Tokenizer>> Load(const std::string& path);
  static absl::StatusOr<std::unique_ptr<Tokenizer>> Parse(std::string_view json);

  // kInvalidArgument if `text` is not UTF-8 (names the byte offset) or longer than 256 MiB;
  // kResourceExhausted if a pattern needs too much backtracking.
  virtual absl::StatusOr<std::vector<TokenId>> Encode(std::string_view text,
                                                      bool add_special_tokens) const = 0;
  // Ids without a token are kInvalidArgument.
  virtual absl::StatusOr<std::string> Decode(std::span<const TokenId> ids,
                                             bool skip_special_tokens) const = 0;
  // A text of more than n times so many bytes has more than n tokens. 0: no such bound is known.
  virtual size_t bytes_per_token_max() const { return 0; }
  // One past the highest id.
  virtual int vocab_size() const = 0;
  virtual bool IsSpecial(TokenId id) const = 0;
  // The bytes that `id` adds, whole or part of a character: the raw material of DetokenizerStream.
  // Null data for ids without a token.
  virtual std::string_view TokenBytes(TokenId id) const = 0;
  // True for a token <0xHH> that stands for one byte where the decoder has ByteFallback.
  virtual bool IsByteToken(TokenId) const { return false; }
  // How bytes become text. Lives as long as the tokenizer.
  virtual const TextRules& text_rules() const = 0;
};

// Streams text: gives out only whole UTF-8 characters, so that the pieces concatenated equal Decode
// of all ids. Under ByteFallback a run of byte tokens is held back until it ends, because one bad
// byte makes all of it U+FFFD. One per request; not thread-safe.
class DetokenizerStream {
 public:
  // `tokenizer` must outlive it.
  DetokenizerStream(const Tokenizer* tokenizer, bool skip_special_tokens);
  // The text that `id` completes; may be empty. Ids without a token are passed over.
  std::string Push(TokenId id);
  // What is left (an incomplete character becomes U+FFFD, as in Decode).
  std::string Finish();

 private:
  const Tokenizer* tokenizer_;
  bool skip_special_tokens_;
  TextAssembler assembler_;
};

}  // namespace switchyard
