// text/jinja_filters.h: the less common filters: those that sort, sum up and reformat. Pure; errors
// are kInvalidArgument without a line.
#pragma once

#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "text/jinja_builtins.h"

namespace switchyard::jinja {

absl::StatusOr<Value> ApplyListFilter(const std::string& name, const Value& in,
                                      const Arguments& args);

// Whether the language has a filter, or a test, of that name.
bool IsFilter(std::string_view name);
bool IsTest(std::string_view name);

}  // namespace switchyard::jinja
