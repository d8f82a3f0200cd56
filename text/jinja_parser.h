// text/jinja_parser.h: tokens -> statements. Jinja's grammar without inheritance, imports, call
// and filter blocks, and line statements.
#pragma once

#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "text/jinja_ast.h"

namespace switchyard::jinja {

// kInvalidArgument with the line: syntax, what is not supported, nesting past 100 levels.
absl::StatusOr<std::vector<Stmt>> ParseTemplate(std::string_view source);

}  // namespace switchyard::jinja
