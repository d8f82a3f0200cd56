#include "text/json_reader.h"

#include "absl/strings/str_cat.h"
#include "text/utf8.h"

namespace switchyard {
namespace {

absl::string_view A(std::string_view s) { return {s.data(), s.size()}; }

absl::Status WrongType(std::string_view component, std::string_view key, const char* wanted) {
  return absl::InvalidArgumentError(
      absl::StrCat("tokenizer.json: ", A(component), ": field '", A(key), "' is not ", wanted));
}

}  // namespace

std::optional<Json> FindField(Json object, std::string_view key) {
  Json value;
  if (object[key].get(value) != simdjson::SUCCESS || value.is_null()) return std::nullopt;
  return value;
}

absl::StatusOr<std::string_view> StringField(Json object, std::string_view component,
                                             std::string_view key) {
  std::string_view value;
  if (object[key].get(value) != simdjson::SUCCESS) return WrongType(component, key, "a string");
  return value;
}

absl::StatusOr<bool> BoolField(Json object, std::string_view component, std::string_view key,
                               bool fallback) {
  const std::optional<Json> field = FindField(object, key);
  if (!field) return fallback;
  bool value;
  if (field->get(value) != simdjson::SUCCESS) return WrongType(component, key, "true or false");
  return value;
}

absl::StatusOr<int64_t> IntField(Json object, std::string_view component, std::string_view key) {
  int64_t value;
  if (object[key].get(value) != simdjson::SUCCESS) return WrongType(component, key, "an integer");
  return value;
}

absl::StatusOr<simdjson::dom::array> ArrayField(Json object, std::string_view component,
                                                std::string_view key) {
  simdjson::dom::array value;
  if (object[key].get(value) != simdjson::SUCCESS) return WrongType(component, key, "a list");
  return value;
}

absl::Status CheckContent(std::string_view component, std::string_view field,
                          std::string_view value) {
  if (value.size() <= kContentBytesMax) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("tokenizer.json: ", A(component), ": field '",
                                                 A(field), "' has ", value.size(),
                                                 " bytes; the limit is ", kContentBytesMax));
}

absl::Status Unsupported(std::string_view component, std::string_view field, std::string_view value,
                         std::string_view supported) {
  return absl::InvalidArgumentError(
      absl::StrCat("tokenizer.json: ", A(component), ": ", A(field), " '", Shortened(value),
                   "' is not supported (supported: ", A(supported), ")"));
}

}  // namespace switchyard
