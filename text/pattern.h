// text/pattern.h: the pattern of a Replace or Split step of tokenizer.json.
#pragma once

#include <string_view>

#include "absl/status/statusor.h"
#include "text/json_reader.h"
#include "text/regex.h"

namespace switchyard {

// The regex of `component`'s {"String": ...} or {"Regex": ...}. kInvalidArgument names `name`.
absl::StatusOr<Regex> ParsePattern(Json component, std::string_view name);

}  // namespace switchyard
