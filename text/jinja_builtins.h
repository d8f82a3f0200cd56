// text/jinja_builtins.h: filters, tests and methods of the template language. Pure functions; the
// text they make is at most kBytesMax long. Errors are kInvalidArgument without a line.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "text/jinja_value.h"

namespace switchyard::jinja {

constexpr size_t kBytesMax = 16 << 20;  // of one value, and of the output

struct Arguments {
  std::vector<Value> positional;
  std::vector<std::pair<std::string, Value>> named;

  // Argument `index`, or the one called `name`; null if it was not given.
  const Value* Get(size_t index, std::string_view name) const;
};

absl::StatusOr<Value> ApplyFilter(const std::string& name, const Value& in, const Arguments& args);
absl::StatusOr<bool> ApplyTest(const std::string& name, const Value& in, const Arguments& args);

// Whether values of this type have the method; and the call of it.
bool HasMethod(const Value& self, std::string_view name);
absl::StatusOr<Value> CallMethod(const Value& self, const std::string& name, const Arguments& args);

// What a loop over `value` visits: items, keys of a dict, characters; none for undefined.
absl::StatusOr<List> Iterate(const Value& value);
// `needle in haystack`.
absl::StatusOr<bool> Contains(const Value& haystack, const Value& needle);
// object[key], as an index or a slice bound would be; Undefined if it has no such item.
Value GetItem(const Value& object, const Value& key);
// The item that "a.b.0" leads to, as filters name attributes.
Value GetPath(const Value& object, const Value& path);
absl::StatusOr<Value> Slice(const Value& object, const Value* start, const Value* stop,
                            const Value* step);

absl::Status TooLong(size_t bytes_max = kBytesMax);

}  // namespace switchyard::jinja
