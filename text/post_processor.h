// text/post_processor.h: tokenizer.json's "post_processor": the special tokens around a text.
// ByteLevel (adds none), TemplateProcessing, and Sequence of them. Immutable and thread-safe.
#pragma once

#include <vector>

#include "absl/status/statusor.h"
#include "common/ids.h"
#include "text/json_reader.h"

namespace switchyard {

class PostProcessor {
 public:
  // Nothing (null) adds no tokens. kInvalidArgument names what is not supported.
  static absl::StatusOr<PostProcessor> Parse(std::optional<Json> json);
  // What stands before and after the text's tokens if special tokens are wanted.
  const std::vector<TokenId>& prefix() const { return prefix_; }
  const std::vector<TokenId>& suffix() const { return suffix_; }

 private:
  absl::Status AddStep(Json json, std::string_view type);
  absl::Status AddTemplate(Json json);

  std::vector<TokenId> prefix_;
  std::vector<TokenId> suffix_;
};

}  // namespace switchyard
