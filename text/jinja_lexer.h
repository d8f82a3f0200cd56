// text/jinja_lexer.h: a chat template as tokens, white space already trimmed as transformers asks
// of Jinja: trim_blocks, lstrip_blocks, "-" and "+" signs, one final newline dropped.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace switchyard::jinja {

struct Token {
  enum Kind {
    kText,  // outside of tags
    kPrintBegin,
    kPrintEnd,
    kBlockBegin,
    kBlockEnd,
    kName,
    kInt,
    kFloat,
    kString,  // text: unescaped
    kOp,
    kEnd,
  };
  Kind kind;
  std::string text;
  int line;
};

// kInvalidArgument with the line. The last token is kEnd.
absl::StatusOr<std::vector<Token>> Lex(std::string_view source);

// "chat template, line N: what".
absl::Status ErrorAt(int line, std::string_view what);
// `status` with the line, unless what it passed on its way has added one.
absl::Status Located(int line, const absl::Status& status);

}  // namespace switchyard::jinja
