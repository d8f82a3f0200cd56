#include "text/jinja_value.h"

#include <algorithm>
#include <charconv>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/status_macros.h"
#include "text/utf8.h"

namespace switchyard::jinja {
namespace {

template <typename J>
absl::StatusOr<Value> Convert(const J& json, int depth) {
  if (depth >= Value::kDepthMax)
    return absl::InvalidArgumentError("chat template: context is too deep");
  switch (json.type()) {
    case J::value_t::null:
      return Value(None{});
    case J::value_t::boolean:
      return Value(json.template get<bool>());
    case J::value_t::number_integer:
      return Value(json.template get<int64_t>());
    case J::value_t::number_unsigned: {
      const auto n = json.template get<uint64_t>();
      if (n > static_cast<uint64_t>(INT64_MAX)) return Value(static_cast<double>(n));
      return Value(static_cast<int64_t>(n));
    }
    case J::value_t::number_float:
      return Value(json.template get<double>());
    case J::value_t::string: {
      auto text = json.template get<std::string>();
      if (FindInvalidUtf8(text) != text.npos) {
        return absl::InvalidArgumentError("chat template: a string of the context is not UTF-8");
      }
      return Value(std::move(text));
    }
    case J::value_t::array: {
      List list;
      for (const J& item : json) {
        ASSIGN_OR_RETURN(Value value, Convert(item, depth + 1));
        list.push_back(std::move(value));
      }
      return Value(std::move(list));
    }
    case J::value_t::object: {
      Dict dict;
      for (const auto& [key, item] : json.items()) {
        ASSIGN_OR_RETURN(Value value, Convert(item, depth + 1));
        if (FindInvalidUtf8(key) != key.npos) {
          return absl::InvalidArgumentError("chat template: a key of the context is not UTF-8");
        }
        dict.emplace_back(key, std::move(value));
      }
      return Value(std::move(dict));
    }
    default:
      return absl::InvalidArgumentError("chat template: context holds binary data");
  }
}

// \uXXXX, in two halves beyond the first plane.
void EscapeJson(char32_t c, std::string* out) {
  if (c < 0x10000) {
    absl::StrAppendFormat(out, "\\u%04x", static_cast<uint32_t>(c));
    return;
  }
  EscapeJson(0xd800 + ((c - 0x10000) >> 10), out);
  EscapeJson(0xdc00 + ((c - 0x10000) & 0x3ff), out);
}

void QuoteJson(std::string_view text, bool ensure_ascii, std::string* out) {
  out->push_back('"');
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (ensure_ascii && (c & 0x80) != 0) {
      const CodePoint point = FirstCodePoint(text.substr(i));
      EscapeJson(point.value, out);
      i += point.length - 1;
      continue;
    }
    switch (c) {
      case '"':
        out->append("\\\"");
        break;
      case '\\':
        out->append("\\\\");
        break;
      case '\n':
        out->append("\\n");
        break;
      case '\r':
        out->append("\\r");
        break;
      case '\t':
        out->append("\\t");
        break;
      case '\b':
        out->append("\\b");
        break;
      case '\f':
        out->append("\\f");
        break;
      default:
        if (static_cast<unsigned char>(c) < 0x20) {
          absl::StrAppendFormat(out, "\\u%04x", c);
        } else {
          out->push_back(c);
        }
    }
  }
  out->push_back('"');
}

void QuotePython(std::string_view text, std::string* out) {
  const char quote = text.find('\'') != text.npos && text.find('"') == text.npos ? '"' : '\'';
  out->push_back(quote);
  for (char c : text) {
    if (c == quote || c == '\\') {
      out->push_back('\\');
      out->push_back(c);
    } else if (c == '\n') {
      out->append("\\n");
    } else if (c == '\r') {
      out->append("\\r");
    } else if (c == '\t') {
      out->append("\\t");
    } else if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) {
      absl::StrAppendFormat(out, "\\x%02x", c);
    } else {
      out->push_back(c);
    }
  }
  out->push_back(quote);
}

class JsonWriter {
 public:
  JsonWriter(const JsonStyle& style, size_t bytes_max, std::string* out)
      : style_(style), bytes_max_(bytes_max), out_(out) {}

  absl::Status Write(const Value& value, int level) {
    if (out_->size() > bytes_max_) {
      return absl::ResourceExhaustedError(
          absl::StrCat("tojson makes more than ", bytes_max_, " bytes"));
    }
    if (const auto* text = value.AsString()) {
      QuoteJson(*text, style_.ensure_ascii, out_);
    } else if (const auto* list = value.AsList()) {
      return WriteItems('[', ']', list->size(), level,
                        [&](size_t i) { return Write((*list)[i], level + 1); });
    } else if (value.AsDict()) {
      Dict dict = *value.AsDict();
      if (style_.sort_keys) {
        std::sort(dict.begin(), dict.end(),
                  [](const auto& a, const auto& b) { return a.first < b.first; });
      }
      return WriteItems('{', '}', dict.size(), level, [&](size_t i) {
        QuoteJson(dict[i].first, style_.ensure_ascii, out_);
        out_->append(style_.key);
        return Write(dict[i].second, level + 1);
      });
    } else if (value.IsNone()) {
      out_->append("null");
    } else if (value.IsBool()) {
      out_->append(value.Truthy() ? "true" : "false");
    } else if (value.IsFloat() && !std::isfinite(value.ToDouble())) {
      const double d = value.ToDouble();
      out_->append(std::isnan(d) ? "NaN" : d > 0 ? "Infinity" : "-Infinity");
    } else if (value.IsNumber()) {
      out_->append(value.Str());
    } else {
      return absl::InvalidArgumentError(absl::StrCat("tojson of ", value.TypeName()));
    }
    return absl::OkStatus();
  }

 private:
  template <typename Item>
  absl::Status WriteItems(char open, char close, size_t count, int level, const Item& item) {
    out_->push_back(open);
    for (size_t i = 0; i < count; ++i) {
      if (i > 0) out_->append(style_.item);
      NewLine(level + 1);
      RETURN_IF_ERROR(item(i));
    }
    if (count > 0) NewLine(level);
    out_->push_back(close);
    return absl::OkStatus();
  }
  void NewLine(int level) {
    if (style_.indent < 0) return;
    out_->append("\n").append(static_cast<size_t>(style_.indent) * level, ' ');
  }

  const JsonStyle& style_;
  const size_t bytes_max_;
  std::string* out_;
};

}  // namespace

absl::StatusOr<Value> FromJson(const nlohmann::json& json) { return Convert(json, 0); }
absl::StatusOr<Value> FromJson(const nlohmann::ordered_json& json) { return Convert(json, 0); }

absl::StatusOr<std::string> ToJson(const Value& value, const JsonStyle& style, size_t bytes_max) {
  std::string out;
  RETURN_IF_ERROR(JsonWriter(style, bytes_max, &out).Write(value, 0));
  return out;
}

std::string FloatRepr(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value > 0 ? "inf" : "-inf";
  char buffer[32];
  const auto end =
      std::to_chars(buffer, buffer + sizeof(buffer), value, std::chars_format::scientific);
  std::string text(buffer, end.ptr);
  const size_t e = text.find('e');
  const int exponent = std::stoi(text.substr(e + 1));
  if (exponent < -4 || exponent >= 16) return text;  // both write at least two exponent digits
  char fixed[64];
  const auto fixed_end =
      std::to_chars(fixed, fixed + sizeof(fixed), value, std::chars_format::fixed);
  text.assign(fixed, fixed_end.ptr);
  return text.find('.') == text.npos ? text + ".0" : text;
}

bool Value::Truthy() const {
  if (IsUndefined() || IsNone()) return false;
  if (IsNumber()) return ToDouble() != 0;
  if (const auto* s = AsString()) return !s->empty();
  if (const auto* l = AsList()) return !l->empty();
  if (const auto* d = AsDict()) return !d->empty();
  return true;
}

int64_t Value::ToInt() const {
  if (const bool* b = std::get_if<bool>(&v_)) return *b;
  const int64_t* i = std::get_if<int64_t>(&v_);
  return i ? *i : 0;
}

double Value::ToDouble() const {
  if (const double* d = std::get_if<double>(&v_)) return *d;
  return static_cast<double>(ToInt());
}

std::string Value::TypeName() const {
  static constexpr const char* kNames[] = {"undefined", "None",  "bool",    "int",
                                           "float",     "str",   "list",    "dict",
                                           "namespace", "macro", "function"};
  return kNames[v_.index()];
}

std::string Value::Str() const {
  if (IsUndefined()) return "";
  if (const auto* s = AsString()) return *s;
  std::string out;
  Repr(&out);
  return out;
}

void Value::Repr(std::string* out) const {
  if (const auto* s = AsString()) {
    QuotePython(*s, out);
  } else if (IsNone()) {
    out->append("None");
  } else if (IsBool()) {
    out->append(ToInt() ? "True" : "False");
  } else if (IsInt()) {
    absl::StrAppend(out, ToInt());
  } else if (IsFloat()) {
    out->append(FloatRepr(ToDouble()));
  } else if (const auto* list = AsList()) {
    out->push_back('[');
    for (size_t i = 0; i < list->size(); ++i) {
      if (i > 0) out->append(", ");
      (*list)[i].Repr(out);
    }
    out->push_back(']');
  } else if (const auto* dict = AsDict()) {
    out->push_back('{');
    for (size_t i = 0; i < dict->size(); ++i) {
      if (i > 0) out->append(", ");
      QuotePython((*dict)[i].first, out);
      out->append(": ");
      (*dict)[i].second.Repr(out);
    }
    out->push_back('}');
  } else if (IsUndefined()) {
    out->append("Undefined");
  } else {
    absl::StrAppend(out, "<", TypeName(), ">");
  }
}

const Value* Value::Find(std::string_view key) const {
  const Dict* dict = AsDict();
  if (dict == nullptr) return nullptr;
  for (const auto& [name, value] : *dict) {
    if (name == key) return &value;
  }
  return nullptr;
}

bool Equal(const Value& a, const Value& b) {
  if (a.IsNumber() && b.IsNumber()) {
    if (a.IsFloat() || b.IsFloat()) return a.ToDouble() == b.ToDouble();
    return a.ToInt() == b.ToInt();
  }
  if (a.AsString() && b.AsString()) return *a.AsString() == *b.AsString();
  if (const List* x = a.AsList(), *y = b.AsList(); x && y) {
    return x == y || std::equal(x->begin(), x->end(), y->begin(), y->end(), Equal);
  }
  if (const Dict* x = a.AsDict(), *y = b.AsDict(); x && y) {
    if (x->size() != y->size()) return false;
    return std::all_of(x->begin(), x->end(), [&](const auto& item) {
      const Value* other = b.Find(item.first);
      return other != nullptr && Equal(item.second, *other);
    });
  }
  if (a.AsNamespace()) return a.AsNamespace() == b.AsNamespace();
  return (a.IsNone() && b.IsNone()) || (a.IsUndefined() && b.IsUndefined());
}

absl::StatusOr<bool> Less(const Value& a, const Value& b) {
  if (a.IsNumber() && b.IsNumber()) {
    if (a.IsFloat() || b.IsFloat()) return a.ToDouble() < b.ToDouble();
    return a.ToInt() < b.ToInt();
  }
  if (a.AsString() && b.AsString()) return *a.AsString() < *b.AsString();
  if (const List* x = a.AsList(), *y = b.AsList(); x && y) {
    for (size_t i = 0; i < x->size() && i < y->size(); ++i) {
      if (!Equal((*x)[i], (*y)[i])) return Less((*x)[i], (*y)[i]);
    }
    return x->size() < y->size();
  }
  return absl::InvalidArgumentError(
      absl::StrCat("'<' between ", a.TypeName(), " and ", b.TypeName()));
}

}  // namespace switchyard::jinja
