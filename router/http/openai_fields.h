// router/http/openai_fields.h: a body's bytes to JSON, and a JSON object's members to checked
// values.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace switchyard {

inline constexpr int kJsonDepthMax = 64;
// Numbers, strings, arrays and objects of one body: each costs tens of bytes once it is parsed.
inline constexpr size_t kJsonValuesMax = 1 << 20;
// Of one object: an object in the client's order is searched from its begin.
inline constexpr size_t kJsonMembersMax = 1024;

// A JSON object. kInvalidArgument otherwise, with the position of what is wrong; a string that is
// not UTF-8 is wrong. Depth and number of values are bounded before anything is built. Members keep
// the client's order, which shows where a chat template prints an object.
// `values_left`: how many values it may have at most, if fewer; reduced by those that it has, to 0
// if it has more.
absl::StatusOr<nlohmann::ordered_json> ParseJsonObject(std::string_view body,
                                                       size_t* values_left = nullptr);

// An error about one field: the status carries its name for the "param" of the client's error.
absl::Status FieldError(std::string_view param, std::string_view message,
                        absl::StatusCode code = absl::StatusCode::kInvalidArgument);
std::string FieldOf(const absl::Status& status);  // empty if it is about none

// What `value` is, short enough for a message.
std::string Shown(const nlohmann::ordered_json& value);

// Reads members. A member that is absent or null gives the fallback. The first error stays in
// status(); after one, everything gives its fallback.
class FieldReader {
 public:
  // `object` must outlive the reader. `prefix` stands before names in errors ("stream_options.").
  explicit FieldReader(const nlohmann::ordered_json& object, std::string prefix = "")
      : object_(object), prefix_(std::move(prefix)) {}

  const nlohmann::ordered_json* Find(std::string_view name) const;  // nullptr: absent or null
  int64_t Int(std::string_view name, int64_t fallback, int64_t min, int64_t max);
  uint64_t Uint64(std::string_view name, uint64_t fallback);
  // A float in [min, max], or (min, max] if `above_min`.
  float Number(std::string_view name, float fallback, float min, float max, bool above_min = false);
  bool Bool(std::string_view name, bool fallback);
  std::string String(std::string_view name, size_t bytes_max);
  // Refuses any value that is not one of `neutral`, a JSON array.
  void Neutral(std::string_view name, std::string_view neutral);

  void Fail(std::string_view name, std::string_view message);
  const absl::Status& status() const { return status_; }

 private:
  const nlohmann::ordered_json& object_;
  const std::string prefix_;
  absl::Status status_;
};

}  // namespace switchyard
