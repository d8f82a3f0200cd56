// text/regex.h: a compiled PCRE2 pattern (UTF, UCP, JIT). Immutable and thread-safe.
#pragma once

#include <cstddef>
#include <memory>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace switchyard {

struct TextRange {
  size_t begin;  // bytes
  size_t end;
};

class Regex {
 public:
  // `pattern` in Oniguruma's syntax, as tokenizer.json has it. kInvalidArgument says what is wrong.
  static absl::StatusOr<Regex> Compile(std::string_view pattern);
  // Matches `text` itself.
  static absl::StatusOr<Regex> Literal(std::string_view text);

  // The matches in `text`, valid UTF-8, from left to right. An empty match next to the end of the
  // match before it is left out. kResourceExhausted past PCRE2's limits on backtracking.
  absl::StatusOr<std::vector<TextRange>> FindAll(std::string_view text) const;

 private:
  struct Free {
    void operator()(void* code) const;
  };
  static absl::StatusOr<Regex> CompilePcre2(std::string_view pattern, uint32_t options);
  std::unique_ptr<void, Free> code_;  // pcre2_code; its macros stay out of this header
};

}  // namespace switchyard
