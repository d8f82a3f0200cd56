// text/json_reader.h: fields of a parsed tokenizer.json, with errors that name component and field.
// Values are views into the simdjson parser that made them.
#pragma once

#include <simdjson.h>

#include <cstdint>
#include <optional>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace switchyard {

using Json = simdjson::dom::element;

// Field `key` of `object`; nothing if it is absent or null, or `object` is not an object.
std::optional<Json> FindField(Json object, std::string_view key);

// The field's value. kInvalidArgument, naming `component` and `key`, if it is of another type, or
// absent without a fallback.
absl::StatusOr<std::string_view> StringField(Json object, std::string_view component,
                                             std::string_view key);
absl::StatusOr<bool> BoolField(Json object, std::string_view component, std::string_view key,
                               bool fallback);
absl::StatusOr<int64_t> IntField(Json object, std::string_view component, std::string_view key);
absl::StatusOr<simdjson::dom::array> ArrayField(Json object, std::string_view component,
                                                std::string_view key);

// What a step puts in is put in again and again: kInvalidArgument if it is longer than this.
inline constexpr size_t kContentBytesMax = 1024;
absl::Status CheckContent(std::string_view component, std::string_view field,
                          std::string_view value);

// kInvalidArgument: `component` says `value` for `field`; supported is `supported`.
absl::Status Unsupported(std::string_view component, std::string_view field, std::string_view value,
                         std::string_view supported);

// Calls visit(step) for `component` itself or, if its type is Sequence, for each entry of its list
// `key`, in depth-first order. `visit` returns absl::Status.
template <typename Visit>
absl::Status VisitSequence(Json component, std::string_view name, std::string_view key,
                           const Visit& visit) {
  auto type = StringField(component, name, "type");
  if (!type.ok()) return type.status();
  if (*type != "Sequence") return visit(component, *type);
  auto steps = ArrayField(component, name, key);
  if (!steps.ok()) return steps.status();
  for (Json step : *steps) {
    absl::Status status = VisitSequence(step, name, key, visit);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

}  // namespace switchyard
