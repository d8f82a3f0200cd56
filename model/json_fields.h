// model/json_fields.h: reads the fields of a JSON object whose content is hostile. The first error
// is kept and named by file, field, value and what is supported; later reads return fallbacks, so
// that a parser reads straight down and asks status() once.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace switchyard {

// A JSON document whose top level is an object without duplicate names, nested at most 64 deep.
// Errors are kInvalidArgument and begin with `where`.
absl::StatusOr<nlohmann::json> ParseJsonObject(std::string_view text, const std::string& where);

class JsonFields {
 public:
  // `object` is borrowed. `where` is the file, or "file: field" for a nested object.
  JsonFields(const nlohmann::json& object, std::string where);

  // A field is absent if it is missing or null. An absent field gives the fallback; without one it
  // is an error.
  int Int(const char* name, int low, int high, std::optional<int> fallback = std::nullopt);
  double Number(const char* name, double low, double high,
                std::optional<double> fallback = std::nullopt);
  bool Bool(const char* name, bool fallback);
  std::string String(const char* name, std::optional<std::string> fallback = std::nullopt);
  // One integer or a list of them (at most 1,024); absent: empty.
  std::vector<int32_t> Ints(const char* name, int low, int high);
  std::vector<std::string> Strings(const char* name);
  // The nested object, or nullptr if absent.
  const nlohmann::json* Object(const char* name);

  bool Has(const char* name) const { return Find(name) != nullptr; }
  // Refuses `name` unless the condition holds: "file: name: value: supported: …".
  void Require(bool condition, const char* name, const std::string& supported);
  void Adopt(const absl::Status& nested) { status_.Update(nested); }
  const absl::Status& status() const { return status_; }
  const std::string& where() const { return where_; }

 private:
  const nlohmann::json* Find(const char* name) const;
  void Refuse(const char* name, const std::string& supported);

  const nlohmann::json& object_;
  const std::string where_;
  absl::Status status_;
};

}  // namespace switchyard
