// text/normalizer.h: tokenizer.json's "normalizer": NFC, NFD, NFKC, NFKD, Prepend, Replace, and
// Sequence of them. Immutable and thread-safe.
#pragma once

#include <string>
#include <variant>
#include <vector>

#include "absl/status/statusor.h"
#include "text/json_reader.h"
#include "text/regex.h"

namespace switchyard {

// The longest text that is normalized or tokenized.
inline constexpr size_t kTextBytesMax = 256 << 20;

class Normalizer {
 public:
  // Nothing (null) leaves text as it is. kInvalidArgument names a component that is not supported.
  static absl::StatusOr<Normalizer> Parse(std::optional<Json> json);
  // `text` is valid UTF-8, and so is the result. `head`: how many bytes at the text's begin stem
  // from the input's first character; brought to the same of the result. kInvalidArgument if the
  // result would be longer than kTextBytesMax.
  absl::StatusOr<std::string> Apply(std::string text, size_t* head) const;
  // The result has at least the text's bytes divided by this; 0: nothing is known.
  size_t shrink_max() const { return shrink_max_; }

 private:
  struct UnicodeForm {
    int utf8proc_options;
  };
  struct Prepend {
    std::string prefix;
  };
  struct Replace {
    Regex pattern;
    std::string content;
  };
  absl::Status AddStep(Json json, std::string_view type);

  std::vector<std::variant<UnicodeForm, Prepend, Replace>> steps_;
  size_t shrink_max_ = 1;
};

}  // namespace switchyard
