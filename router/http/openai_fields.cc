#include "router/http/openai_fields.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <set>

#include "absl/strings/cord.h"
#include "absl/strings/str_cat.h"
#include "router/validate.h"

namespace switchyard {
namespace {

using Json = nlohmann::ordered_json;

// Counts brackets and commas outside strings; the text need not be JSON.
absl::Status CheckSize(std::string_view body, size_t* values_left) {
  int depth = 0;
  size_t& values = *values_left;
  size_t members[kJsonDepthMax + 1] = {};  // commas of the open containers; 0 is outside of all
  bool is_object[kJsonDepthMax + 1] = {};
  bool in_string = false;
  for (size_t i = 0; i < body.size(); ++i) {
    const char c = body[i];
    if (in_string) {
      if (c == '\\') ++i;
      in_string = c != '"';
    } else if (c == '"') {
      in_string = true;
    } else if (c == '[' || c == '{') {
      if (++depth > kJsonDepthMax) {
        return absl::InvalidArgumentError(
            absl::StrCat("body: byte ", i, ": JSON deeper than ", kJsonDepthMax));
      }
      --values;
      members[depth] = 1;
      is_object[depth] = c == '{';
    } else if (c == ']' || c == '}') {
      depth = std::max(0, depth - 1);  // closing what was not opened is the parser's to refuse
    } else if (c == ',') {
      --values;
      if (++members[depth] > kJsonMembersMax && is_object[depth]) {
        return absl::InvalidArgumentError(absl::StrCat(
            "body: byte ", i, ": a JSON object of more than ", kJsonMembersMax, " members"));
      }
    }
    if (values == 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("body: byte ", i, ": more than ", kJsonValuesMax, " JSON values"));
    }
  }
  return absl::OkStatus();
}

// What a library says may quote all of what it could not read.
absl::string_view Short(std::string_view why) {
  constexpr size_t kShownBytes = 200;
  return {why.data(), std::min(why.size(), kShownBytes)};
}

// An integer, also if written 16.0.
std::optional<int64_t> AsInt(const Json& value) {
  if (value.is_number_unsigned()) {
    const uint64_t n = value.get<uint64_t>();
    if (n > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) return std::nullopt;
    return static_cast<int64_t>(n);
  }
  if (value.is_number_integer()) return value.get<int64_t>();
  if (!value.is_number_float()) return std::nullopt;
  const double d = value.get<double>();
  constexpr double kExact = 9007199254740992.0;  // 2^53
  if (!(std::abs(d) <= kExact) || d != std::floor(d)) return std::nullopt;
  return static_cast<int64_t>(d);
}

}  // namespace

absl::StatusOr<Json> ParseJsonObject(std::string_view body, size_t* values_left) {
  size_t all = kJsonValuesMax + 1;
  if (absl::Status status = CheckSize(body, values_left != nullptr ? values_left : &all);
      !status.ok()) {
    return status;
  }
  // Names that the open objects have; of two values for one name, nobody could know which counts.
  std::vector<std::set<std::string>> names;
  std::string twice;
  const auto watch = [&](int, Json::parse_event_t event, const Json& name) {
    if (event == Json::parse_event_t::object_start) names.emplace_back();
    if (event == Json::parse_event_t::object_end) names.pop_back();
    if (event == Json::parse_event_t::key && twice.empty() &&
        !names.back().insert(name.get<std::string>()).second) {
      twice = Shown(name);
    }
    return true;
  };
  try {
    Json out = Json::parse(body, watch);
    if (!twice.empty()) {
      return absl::InvalidArgumentError(absl::StrCat("body: the name ", twice, " is there twice"));
    }
    if (out.is_object()) return out;
    return absl::InvalidArgumentError(
        absl::StrCat("body: must be a JSON object, not ", Shown(out)));
  } catch (const Json::parse_error& e) {
    std::string_view why = e.what();  // "[json.exception…] parse error at line 1, column 2: …"
    if (const size_t at = why.find(": "); at != std::string_view::npos) why.remove_prefix(at + 2);
    return absl::InvalidArgumentError(
        absl::StrCat("body: not JSON: byte ", e.byte, ": ", Short(why)));
  } catch (const Json::exception& e) {  // a number beyond a double
    std::string_view why = e.what();    // "[json.exception…] number overflow parsing '1e999'"
    if (const size_t at = why.find("] "); at != std::string_view::npos) why.remove_prefix(at + 2);
    return absl::InvalidArgumentError(absl::StrCat("body: not JSON: ", Short(why)));
  }
}

absl::Status FieldError(std::string_view param, std::string_view message, absl::StatusCode code) {
  const absl::string_view name(param.data(), param.size());
  absl::Status status(code,
                      absl::StrCat(name, ": ", absl::string_view(message.data(), message.size())));
  status.SetPayload(kFieldPayload, absl::Cord(name));
  return status;
}

std::string FieldOf(const absl::Status& status) {
  const auto field = status.GetPayload(kFieldPayload);
  return field.has_value() ? std::string(*field) : "";
}

std::string Shown(const Json& value) {
  if (value.is_array()) return absl::StrCat("an array of ", value.size());
  if (value.is_object()) return "an object";
  constexpr size_t kShownBytes = 64;
  if (value.is_string() && value.get_ref<const std::string&>().size() > kShownBytes) {
    return absl::StrCat("a string of ", value.get_ref<const std::string&>().size(), " bytes");
  }
  return value.dump(-1, ' ', false, Json::error_handler_t::replace);
}

void FieldReader::Fail(std::string_view name, std::string_view message) {
  if (status_.ok()) status_ = FieldError(prefix_ + std::string(name), message);
}

const Json* FieldReader::Find(std::string_view name) const {
  const auto it = object_.find(name);
  return it == object_.end() || it->is_null() ? nullptr : &*it;
}

int64_t FieldReader::Int(std::string_view name, int64_t fallback, int64_t min, int64_t max) {
  const Json* value = Find(name);
  if (value == nullptr || !status_.ok()) return fallback;
  const std::optional<int64_t> n = AsInt(*value);
  if (n.has_value() && *n >= min && *n <= max) return *n;
  Fail(name, absl::StrCat(Shown(*value), " is not an integer from ", min, " to ", max));
  return fallback;
}

uint64_t FieldReader::Uint64(std::string_view name, uint64_t fallback) {
  const Json* value = Find(name);
  if (value == nullptr || !status_.ok()) return fallback;
  if (value->is_number_unsigned()) return value->get<uint64_t>();
  const std::optional<int64_t> n = AsInt(*value);
  if (n.has_value() && *n >= 0) return static_cast<uint64_t>(*n);
  Fail(name, absl::StrCat(Shown(*value), " is not an integer from 0 to 2^64 - 1"));
  return fallback;
}

float FieldReader::Number(std::string_view name, float fallback, float min, float max,
                          bool above_min) {
  const Json* value = Find(name);
  if (value == nullptr || !status_.ok()) return fallback;
  const double d = value->is_number() ? value->get<double>() : std::nan("");
  // As floats: a double just above `min` may round to it.
  const float f =
      std::abs(d) <= std::numeric_limits<float>::max() ? static_cast<float>(d) : std::nanf("");
  if (f <= max && (above_min ? f > min : f >= min)) return f;
  Fail(name, absl::StrCat(Shown(*value), " is not a number ", above_min ? "above " : "from ", min,
                          " to ", max));
  return fallback;
}

bool FieldReader::Bool(std::string_view name, bool fallback) {
  const Json* value = Find(name);
  if (value == nullptr || !status_.ok()) return fallback;
  if (value->is_boolean()) return value->get<bool>();
  Fail(name, absl::StrCat(Shown(*value), " is not true or false"));
  return fallback;
}

std::string FieldReader::String(std::string_view name, size_t bytes_max) {
  const Json* value = Find(name);
  if (value == nullptr || !status_.ok()) return "";
  if (!value->is_string()) {
    Fail(name, absl::StrCat("must be a string, not ", Shown(*value)));
  } else if (value->get_ref<const std::string&>().size() > bytes_max) {
    Fail(name, absl::StrCat(Shown(*value), " is not a string of at most ", bytes_max, " bytes"));
  } else {
    return value->get<std::string>();
  }
  return "";
}

void FieldReader::Neutral(std::string_view name, std::string_view neutral) {
  const Json* value = Find(name);
  if (value == nullptr || !status_.ok()) return;
  for (const Json& allowed : Json::parse(neutral)) {
    if (*value == allowed) return;
  }
  const absl::string_view others(neutral.data(), neutral.size());
  Fail(name, absl::StrCat(Shown(*value), " is not supported; only null",
                          others == "[]" ? "" : absl::StrCat(" or one of ", others), " is"));
}

}  // namespace switchyard
