#include "model/json_fields.h"

#include <cmath>
#include <unordered_set>

#include "absl/strings/str_cat.h"

namespace switchyard {
namespace {

using nlohmann::json;

constexpr size_t kListMax = 1024;

// Exactly an integer in [low, high]: 3.0 is one, as JSON has no integers.
std::optional<int> AsInt(const json& v, int low, int high) {
  if (!v.is_number()) return std::nullopt;
  const double d = v.get<double>();
  if (!(d >= low && d <= high) || d != std::floor(d)) return std::nullopt;
  return static_cast<int>(d);
}

std::string Shown(const json& v) {
  if (v.is_structured()) {  // not its content: dump() recurses
    return absl::StrCat(v.is_array() ? "a list of " : "an object of ", v.size());
  }
  std::string text = v.dump(-1, ' ', /*ensure_ascii=*/true, json::error_handler_t::replace);
  if (text.size() > 80) text = text.substr(0, 77) + "...";
  return text;
}

}  // namespace

absl::StatusOr<json> ParseJsonObject(std::string_view text, const std::string& where) {
  // Copying, printing and comparing recurse: a document that could exhaust the stack is never
  // built.
  constexpr int kDepthMax = 64;
  bool too_deep = false;
  std::unordered_set<std::string> names;
  std::string duplicate;
  const auto watch = [&](int depth, json::parse_event_t event, json& parsed) {
    if (depth > kDepthMax) too_deep = true;
    if (depth == 1 && event == json::parse_event_t::key) {
      const auto& name = parsed.get_ref<const std::string&>();
      if (!names.insert(name).second) duplicate = name;
    }
    return !too_deep;
  };
  json document = json::parse(text.begin(), text.end(), watch, /*allow_exceptions=*/false);
  if (too_deep) {
    return absl::InvalidArgumentError(
        absl::StrCat(where, ": nested deeper than ", kDepthMax, " levels"));
  }
  if (!duplicate.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(where, ": ", duplicate, " appears twice"));
  }
  if (document.is_discarded() || !document.is_object()) {
    return absl::InvalidArgumentError(absl::StrCat(where, ": not a JSON object"));
  }
  return document;
}

JsonFields::JsonFields(const json& object, std::string where)
    : object_(object), where_(std::move(where)) {
  if (!object.is_object()) {
    status_ = absl::InvalidArgumentError(absl::StrCat(where_, ": wanted a JSON object"));
  }
}

const json* JsonFields::Find(const char* name) const {
  if (!object_.is_object()) return nullptr;
  const auto it = object_.find(name);
  return it == object_.end() || it->is_null() ? nullptr : &*it;
}

void JsonFields::Refuse(const char* name, const std::string& supported) {
  const json* v = Find(name);
  status_.Update(absl::InvalidArgumentError(absl::StrCat(
      where_, ": ", name, ": ", v == nullptr ? "missing" : Shown(*v), "; supported: ", supported)));
}

void JsonFields::Require(bool condition, const char* name, const std::string& supported) {
  if (!condition) Refuse(name, supported);
}

int JsonFields::Int(const char* name, int low, int high, std::optional<int> fallback) {
  const json* v = Find(name);
  if (v == nullptr && fallback) return *fallback;
  const auto value = v == nullptr ? std::nullopt : AsInt(*v, low, high);
  if (!value) Refuse(name, absl::StrCat("an integer in [", low, ", ", high, "]"));
  return value.value_or(low);
}

double JsonFields::Number(const char* name, double low, double high,
                          std::optional<double> fallback) {
  const json* v = Find(name);
  if (v == nullptr && fallback) return *fallback;
  if (v != nullptr && v->is_number()) {
    const double d = v->get<double>();
    if (d >= low && d <= high) return d;
  }
  Refuse(name, absl::StrCat("a number in [", low, ", ", high, "]"));
  return low;
}

bool JsonFields::Bool(const char* name, bool fallback) {
  const json* v = Find(name);
  if (v == nullptr) return fallback;
  if (!v->is_boolean()) Refuse(name, "true or false");
  return v->is_boolean() ? v->get<bool>() : fallback;
}

std::string JsonFields::String(const char* name, std::optional<std::string> fallback) {
  const json* v = Find(name);
  if (v == nullptr && fallback) return *fallback;
  if (v != nullptr && v->is_string()) return v->get<std::string>();
  Refuse(name, "a string");
  return fallback.value_or("");
}

std::vector<int32_t> JsonFields::Ints(const char* name, int low, int high) {
  std::vector<int32_t> out;
  const json* v = Find(name);
  if (v == nullptr) return out;
  const size_t count = v->is_array() ? v->size() : 1;
  for (size_t i = 0; i < count; ++i) {
    const auto value = AsInt(v->is_array() ? (*v)[i] : *v, low, high);
    if (!value || count > kListMax) {
      Refuse(name, absl::StrCat("at most ", kListMax, " integers in [", low, ", ", high, "]"));
      return {};
    }
    out.push_back(*value);
  }
  return out;
}

std::vector<std::string> JsonFields::Strings(const char* name) {
  std::vector<std::string> out;
  const json* v = Find(name);
  if (v == nullptr) return out;
  bool good = v->is_array() && v->size() <= kListMax;
  for (size_t i = 0; good && i < v->size(); ++i) {
    good = (*v)[i].is_string();
    if (good) out.push_back((*v)[i].get<std::string>());
  }
  if (!good) Refuse(name, absl::StrCat("a list of at most ", kListMax, " strings"));
  return out;
}

const json* JsonFields::Object(const char* name) {
  const json* v = Find(name);
  if (v != nullptr && !v->is_object()) Refuse(name, "an object or null");
  return v != nullptr && v->is_object() ? v : nullptr;
}

}  // namespace switchyard
