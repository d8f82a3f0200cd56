// text/pre_tokenizer.h: tokenizer.json's "pre_tokenizer": cuts text into the words that the model
// merges within. Split, Digits, ByteLevel, Metaspace and Sequence. Immutable and thread-safe.
#pragma once

#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "absl/status/statusor.h"
#include "text/json_reader.h"
#include "text/regex.h"

namespace switchyard {

// Words: ranges of `text` in order, none empty. `text` may differ from the input (ByteLevel).
struct Words {
  std::string text;
  std::vector<TextRange> ranges;
  size_t head = 0;  // bytes at the text's begin that stem from the input's first character
};

class PreTokenizer {
 public:
  // Nothing (null) makes one word of the whole text. kInvalidArgument names what is not supported.
  static absl::StatusOr<PreTokenizer> Parse(std::optional<Json> json);
  // `text` is valid UTF-8. `head`: as of Words; "first" of Metaspace means words that begin there.
  absl::StatusOr<Words> Apply(std::string text, size_t head) const;
  // Every byte of a text is in some word, and has a character of its own there (ByteLevel).
  bool byte_level() const;
  bool removes() const;  // what a Split matches is not part of any word

 private:
  enum class Behavior { kRemoved, kIsolated, kMergedWithPrevious, kMergedWithNext, kContiguous };
  struct Split {
    Regex pattern;
    Behavior behavior;
    bool invert;
  };
  struct ByteLevel {
    bool add_prefix_space;
    std::optional<Split> split;
  };
  struct Metaspace {
    enum Prepend { kNever, kFirst, kAlways };
    std::string replacement;
    Prepend prepend;
    std::optional<Split> split;
  };
  absl::Status AddStep(Json json, std::string_view type);
  absl::Status AddSplit(Json json);
  absl::Status AddMetaspace(Json json);
  static absl::StatusOr<Words> ApplySplit(const Split& split, Words words);
  static absl::StatusOr<Words> ApplyByteLevel(const ByteLevel& step, const Words& words);
  static absl::StatusOr<Words> ApplyMetaspace(const Metaspace& step, const Words& words);

  std::vector<std::variant<Split, ByteLevel, Metaspace>> steps_;
};

}  // namespace switchyard
