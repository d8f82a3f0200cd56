// text/decoder.h: tokenizer.json's "decoder": the bytes of one token, and the rules by which
// TextAssembler makes text of them. Supported: none, ByteLevel, or a Sequence of Replace*,
// ByteFallback?, Fuse?, Strip? in this order (Llama, Mixtral). Immutable and thread-safe.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "text/byte_alphabet.h"
#include "text/json_reader.h"
#include "text/text_assembler.h"

namespace switchyard {

class Decoder {
 public:
  struct TokenText {
    std::string bytes;
    bool is_byte_token = false;
  };

  // Nothing (null) joins tokens by spaces. kInvalidArgument names what is not supported.
  static absl::StatusOr<Decoder> Parse(std::optional<Json> json);
  TokenText Decode(std::string_view token) const;
  const TextRules& rules() const { return rules_; }

 private:
  absl::Status AddStep(Json json, std::string_view type);
  absl::Status AddReplace(Json json);
  absl::Status AddStrip(Json json);

  enum Stage { kStart, kReplace, kByteFallback, kFuse, kEnd };
  Stage stage_ = kStart;
  bool byte_level_ = false;
  ByteAlphabet alphabet_;
  std::vector<std::pair<std::string, std::string>> replacements_;
  TextRules rules_;
};

}  // namespace switchyard
