// text/jinja_strings.h: the methods of Python strings that templates call, by code point.
#pragma once

#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "text/jinja_builtins.h"

namespace switchyard::jinja {

// str.strip, lstrip, rstrip: drops characters of *chars, or white space if it is null.
std::string_view Strip(std::string_view text, const std::string* chars, bool left, bool right);

bool HasStringMethod(std::string_view name);
absl::StatusOr<Value> CallStringMethod(const std::string& self, const std::string& name,
                                       const Arguments& args);

}  // namespace switchyard::jinja
