#include "text/jinja_builtins.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/status_macros.h"
#include "text/jinja_filters.h"
#include "text/jinja_strings.h"
#include "text/utf8.h"

namespace switchyard::jinja {
namespace {

constexpr size_t kIteratedBytesMax = 1 << 20;  // of a string: each character becomes a value

absl::Status Bad(std::string_view what) {
  return absl::InvalidArgumentError(absl::string_view(what.data(), what.size()));
}

absl::StatusOr<Value> Length(const Value& in) {
  if (const auto* s = in.AsString()) return Value(static_cast<int64_t>(CountCodePoints(*s)));
  if (const auto* l = in.AsList()) return Value(static_cast<int64_t>(l->size()));
  if (const auto* d = in.AsDict()) return Value(static_cast<int64_t>(d->size()));
  if (in.IsUndefined()) return Value(int64_t{0});
  return Bad(absl::StrCat("length of ", in.TypeName()));
}

absl::StatusOr<Value> Join(const Value& in, const Arguments& args) {
  ASSIGN_OR_RETURN(const List items, Iterate(in));
  const Value* separator = args.Get(0, "d");
  const Value* attribute = args.Get(1, "attribute");
  const std::string between = separator ? separator->Str() : "";
  std::string out;
  for (size_t i = 0; i < items.size(); ++i) {
    if (i > 0) out += between;
    out += attribute ? GetPath(items[i], *attribute).Str() : items[i].Str();
    if (out.size() > kBytesMax) return TooLong();
  }
  return Value(std::move(out));
}

absl::StatusOr<Value> ToJsonFilter(const Value& in, const Arguments& args) {
  constexpr int64_t kIndentMax = 16;
  int indent = -1;
  // In the order of transformers' own tojson.
  const Value *ascii = args.Get(0, "ensure_ascii"), *sort_keys = args.Get(3, "sort_keys");
  if (const Value* v = args.Get(1, "indent"); v && !v->IsNone()) {
    if (!v->IsInt() || v->ToInt() < 0 || v->ToInt() > kIndentMax) {
      return Bad(absl::StrCat("tojson(indent) is ", v->Str(), "; it must be 0 to ", kIndentMax));
    }
    indent = static_cast<int>(v->ToInt());
  }
  JsonStyle style{.indent = indent, .item = indent < 0 ? ", " : ",", .key = ": "};
  style.ensure_ascii = ascii != nullptr && ascii->Truthy();
  style.sort_keys = sort_keys != nullptr && sort_keys->Truthy();
  if (const Value* v = args.Get(2, "separators"); v && !v->IsNone()) {
    const List* pair = v->AsList();
    if (pair == nullptr || pair->size() != 2) return Bad("tojson(separators) is not a pair");
    style.item = (*pair)[0].Str();
    style.key = (*pair)[1].Str();
  }
  ASSIGN_OR_RETURN(std::string text, ToJson(in, style, kBytesMax));
  return Value(std::move(text));
}

// Python's int(text, base) for 2…36, with its prefixes.
bool ParseInteger(std::string_view text, int base, int64_t* out) {
  if (base < 2 || base > 36) return false;
  const bool negative = text.starts_with('-');
  if (negative || text.starts_with('+')) text.remove_prefix(1);
  const std::pair<int, char> prefixes[] = {{2, 'b'}, {8, 'o'}, {16, 'x'}};
  for (const auto& [of, letter] : prefixes) {
    if (base == of && text.size() > 2 && text[0] == '0' && (text[1] | 0x20) == letter) {
      text.remove_prefix(2);
    }
  }
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), *out, base);
  if (error != std::errc() || text.empty() || text[0] == '-' || end != text.data() + text.size()) {
    return false;
  }
  if (negative) *out = -*out;
  return true;
}

absl::StatusOr<Value> ToNumber(const std::string& name, const Value& in, const Arguments& args) {
  const bool to_int = name == "int";
  const Value* fallback = args.Get(0, "default");
  double number = 0;
  bool ok = in.IsNumber();
  if (const Value* base = args.Get(1, "base"); base && in.AsString() && to_int) {
    int64_t parsed = 0;
    const int radix = base->IsInt() ? static_cast<int>(base->ToInt()) : 10;
    if (ParseInteger(Strip(*in.AsString(), nullptr, true, true), radix, &parsed)) {
      return Value(parsed);
    }
    return fallback ? *fallback : Value(int64_t{0});
  }
  if (in.IsInt() || in.IsBool()) return to_int ? Value(in.ToInt()) : Value(in.ToDouble());
  if (ok) number = in.ToDouble();
  if (const auto* s = in.AsString()) {
    const std::string text(Strip(*s, nullptr, true, true));
    if (int64_t exact = 0; to_int && ParseInteger(text, 10, &exact)) return Value(exact);
    char* end = nullptr;
    number = std::strtod(text.c_str(), &end);
    ok = !text.empty() && *end == '\0';
  }
  if (!ok || !std::isfinite(number) || (to_int && std::abs(number) > 9e18)) {
    if (fallback) return *fallback;
    return to_int ? Value(int64_t{0}) : Value(0.0);
  }
  return to_int ? Value(static_cast<int64_t>(number)) : Value(number);
}

// map(attribute=…) or map('filter', …); select and reject by test, of the item or an attribute.
absl::StatusOr<Value> MapOrSelect(const std::string& name, const Value& in, const Arguments& args) {
  ASSIGN_OR_RETURN(const List items, Iterate(in));
  List out;
  const Value* attribute = args.Get(args.positional.size(), "attribute");
  const bool by_attribute = name.ends_with("attr");
  const Value* fallback = args.Get(args.positional.size(), "default");
  if (args.positional.empty() && name == "map" && attribute == nullptr) {
    return Bad("map needs an argument");
  }
  if (args.positional.empty() && by_attribute) return Bad(absl::StrCat(name, " needs an argument"));
  Arguments rest;
  const size_t used = by_attribute ? 2 : 1;
  if (args.positional.size() > used) {
    rest.positional.assign(args.positional.begin() + used, args.positional.end());
  }
  size_t weight = 0;
  for (const Value& item : items) {
    if (!out.empty() && (weight += out.back().weight()) > kBytesMax) return TooLong();
    if (name == "map") {
      if (args.positional.empty()) {
        const Value found = GetPath(item, *attribute);
        out.push_back(found.IsUndefined() && fallback ? *fallback : found);
      } else {
        ASSIGN_OR_RETURN(Value mapped, ApplyFilter(args.positional[0].Str(), item, rest));
        out.push_back(std::move(mapped));
      }
      continue;
    }
    const Value subject = by_attribute ? GetPath(item, args.positional[0]) : item;
    bool keep = subject.Truthy();
    if (args.positional.size() >= used) {
      ASSIGN_OR_RETURN(keep, ApplyTest(args.positional[used - 1].Str(), subject, rest));
    }
    if (keep == name.starts_with("select")) out.push_back(item);
  }
  return Value(std::move(out));
}

absl::StatusOr<Value> Items(const Value& in) {
  List out;
  if (in.IsUndefined()) return Value(std::move(out));
  if (in.AsDict() == nullptr) return Bad(absl::StrCat("items of ", in.TypeName()));
  for (const auto& [key, value] : *in.AsDict()) out.push_back(Value(List{Value(key), value}));
  return Value(std::move(out));
}

}  // namespace

absl::Status TooLong(size_t bytes_max) {
  return absl::ResourceExhaustedError(
      absl::StrCat("a value or the output is longer than ", bytes_max, " bytes"));
}

const Value* Arguments::Get(size_t index, std::string_view name) const {
  if (index < positional.size()) return &positional[index];
  for (const auto& [key, value] : named) {
    if (key == name) return &value;
  }
  return nullptr;
}

absl::StatusOr<List> Iterate(const Value& value) {
  List out;
  if (const auto* list = value.AsList()) return *list;
  if (const auto* dict = value.AsDict()) {
    for (const auto& item : *dict) out.emplace_back(item.first);
  } else if (const auto* text = value.AsString()) {
    if (text->size() > kIteratedBytesMax) return TooLong(kIteratedBytesMax);
    std::string_view rest = *text;
    while (!rest.empty()) {
      const size_t length = FirstCodePoint(rest).length;
      out.emplace_back(std::string(rest.substr(0, length)));
      rest.remove_prefix(length);
    }
  } else if (!value.IsUndefined()) {
    return Bad(absl::StrCat(value.TypeName(), " cannot be iterated"));
  }
  return out;
}

absl::StatusOr<bool> Contains(const Value& haystack, const Value& needle) {
  if (const auto* text = haystack.AsString()) {
    if (needle.AsString() == nullptr) return Bad("'in' a string needs a string");
    return text->find(*needle.AsString()) != text->npos;
  }
  if (const auto* list = haystack.AsList()) {
    return std::any_of(list->begin(), list->end(),
                       [&](const Value& v) { return Equal(v, needle); });
  }
  if (haystack.AsDict()) {
    return needle.AsString() != nullptr && haystack.Find(*needle.AsString()) != nullptr;
  }
  if (haystack.IsUndefined()) return false;
  return Bad(absl::StrCat("'in' ", haystack.TypeName()));
}

Value GetItem(const Value& object, const Value& key) {
  const Value missing(Undefined{key.Str()});
  if (const auto* name = key.AsString()) {
    if (const Namespace* space = object.AsNamespace()) {
      const auto it = space->fields.find(*name);
      return it == space->fields.end() ? missing : it->second;
    }
    const Value* found = object.Find(*name);
    return found ? *found : missing;
  }
  if (!key.IsInt() && !key.IsBool()) return missing;
  int64_t index = key.ToInt();
  if (const auto* list = object.AsList()) {
    const auto size = static_cast<int64_t>(list->size());
    if (index < 0) index += size;
    return index >= 0 && index < size ? (*list)[index] : missing;
  }
  if (const auto* text = object.AsString()) {
    if (index < 0) index += static_cast<int64_t>(CountCodePoints(*text));
    std::string_view rest = index < 0 ? std::string_view() : *text;
    for (; index > 0 && !rest.empty(); --index) rest.remove_prefix(FirstCodePoint(rest).length);
    return rest.empty() ? missing : Value(std::string(rest.substr(0, FirstCodePoint(rest).length)));
  }
  return missing;
}

Value GetPath(const Value& object, const Value& path) {
  const std::string* names = path.AsString();
  if (names == nullptr) return GetItem(object, path);
  Value at = object;
  for (const absl::string_view name : absl::StrSplit(*names, '.')) {
    int64_t index = 0;
    at = GetItem(at, absl::SimpleAtoi(name, &index) ? Value(index) : Value(std::string(name)));
  }
  return at;
}

absl::StatusOr<Value> Slice(const Value& object, const Value* start, const Value* stop,
                            const Value* step) {
  if (!object.AsList() && !object.AsString()) {
    return Bad(absl::StrCat("slice of ", object.TypeName()));
  }
  for (const Value* bound : {start, stop, step}) {
    if (bound && !bound->IsInt() && !bound->IsNone()) return Bad("a slice bound is not an integer");
  }
  ASSIGN_OR_RETURN(const List items, Iterate(object));
  const auto size = static_cast<int64_t>(items.size());
  const int64_t by = step && step->IsInt() ? step->ToInt() : 1;
  if (by == 0 || by > (1 << 30) || by < -(1 << 30)) return Bad("a slice step is 0 or too large");
  const auto bound = [&](const Value* v, int64_t fallback) {
    if (v == nullptr || !v->IsInt()) return fallback;
    const int64_t i = v->ToInt() < 0 ? std::max(v->ToInt() + size, int64_t{-1}) : v->ToInt();
    return by > 0 ? std::clamp(i, int64_t{0}, size) : std::clamp(i, int64_t{-1}, size - 1);
  };
  const int64_t from = bound(start, by > 0 ? 0 : size - 1);
  const int64_t to = bound(stop, by > 0 ? size : -1);
  List out;
  for (int64_t i = from; by > 0 ? i < to : i > to; i += by) out.push_back(items[i]);
  if (object.AsList()) return Value(std::move(out));
  return Join(Value(std::move(out)), {});
}

absl::StatusOr<Value> ApplyFilter(const std::string& name, const Value& in, const Arguments& args) {
  if (name == "default" || name == "d") {
    const Value* fallback = args.Get(0, "default_value");
    const Value* boolean = args.Get(1, "boolean");
    const bool use = in.IsUndefined() || (boolean && boolean->Truthy() && !in.Truthy());
    return use ? (fallback ? *fallback : Value("")) : in;
  }
  if (name == "length" || name == "count") return Length(in);
  if (name == "join") return Join(in, args);
  if (name == "tojson") return ToJsonFilter(in, args);
  if (name == "string" || name == "safe") return Value(in.Str());
  if (name == "int" || name == "float") return ToNumber(name, in, args);
  if (name == "items") return Items(in);
  if (name == "map" || name == "select" || name == "reject" || name == "selectattr" ||
      name == "rejectattr") {
    return MapOrSelect(name, in, args);
  }
  if (name == "first" || name == "last" || name == "list" || name == "reverse") {
    ASSIGN_OR_RETURN(List items, Iterate(in));
    if (name == "list") return Value(std::move(items));
    if (name == "reverse") {
      std::reverse(items.begin(), items.end());
      return in.AsString() ? Join(Value(std::move(items)), {}) : Value(std::move(items));
    }
    if (items.empty()) return Value(Undefined{name});
    return name == "first" ? items.front() : items.back();
  }
  if (name == "abs" && in.IsNumber()) {
    if (in.IsFloat()) return Value(std::abs(in.ToDouble()));
    if (in.ToInt() != std::numeric_limits<int64_t>::min()) return Value(std::abs(in.ToInt()));
  }
  if (name == "trim" || name == "upper" || name == "lower" || name == "capitalize" ||
      name == "title" || name == "replace") {
    return CallStringMethod(in.Str(), name == "trim" ? "strip" : name, args);
  }
  return ApplyListFilter(name, in, args);
}

absl::StatusOr<bool> ApplyTest(const std::string& name, const Value& in, const Arguments& args) {
  if (name == "defined") return !in.IsUndefined();
  if (name == "undefined") return in.IsUndefined();
  if (name == "none") return in.IsNone();
  if (name == "string") return in.AsString() != nullptr;
  if (name == "number") return in.IsNumber();
  if (name == "integer") return in.IsInt();
  if (name == "float") return in.IsFloat();
  if (name == "boolean") return in.IsBool();
  if (name == "true") return in.IsBool() && in.Truthy();
  if (name == "false") return in.IsBool() && !in.Truthy();
  if (name == "lower") return CallStringMethod(in.Str(), "islower", {})->Truthy();
  if (name == "upper") return CallStringMethod(in.Str(), "isupper", {})->Truthy();
  if (name == "filter") return in.AsString() != nullptr && IsFilter(*in.AsString());
  if (name == "test") return in.AsString() != nullptr && IsTest(*in.AsString());
  if (name == "mapping") return in.AsDict() != nullptr;
  if (name == "sequence" || name == "iterable") {
    return in.AsList() || in.AsDict() || in.AsString() || in.IsUndefined();
  }
  if (name == "callable") return in.AsMacro() || in.AsBuiltin();
  if ((name == "odd" || name == "even") && in.IsInt()) return (in.ToInt() & 1) == (name == "odd");
  const Value* other = args.Get(0, "other");
  if (other != nullptr) {
    if (name == "equalto" || name == "eq" || name == "==") return Equal(in, *other);
    if (name == "ne" || name == "!=") return !Equal(in, *other);
    if (name == "sameas") {
      return Equal(in, *other) && in.IsBool() == other->IsBool() && in.IsInt() == other->IsInt();
    }
    if (name == "lt" || name == "<" || name == "lessthan") return Less(in, *other);
    if (name == "gt" || name == ">" || name == "greaterthan") return Less(*other, in);
    if (name == "le" || name == "<=" || name == "ge" || name == ">=") {
      const bool at_most = name == "le" || name == "<=";
      ASSIGN_OR_RETURN(const bool beyond, at_most ? Less(*other, in) : Less(in, *other));
      return !beyond;
    }
    if (name == "in") return Contains(*other, in);
    if (name == "divisibleby" && in.IsInt() && other->IsInt() && other->ToInt() > 0) {
      return in.ToInt() % other->ToInt() == 0;
    }
  }
  return Bad(absl::StrCat("test '", name, "' of ", in.TypeName(), " is not supported"));
}

bool HasMethod(const Value& self, std::string_view name) {
  if (self.AsString()) return HasStringMethod(name);
  if (self.AsList()) return name == "index" || name == "count";
  return self.AsDict() && (name == "items" || name == "keys" || name == "values" || name == "get");
}

absl::StatusOr<Value> CallMethod(const Value& self, const std::string& name,
                                 const Arguments& args) {
  if (const auto* text = self.AsString()) return CallStringMethod(*text, name, args);
  if (const auto* list = self.AsList()) {
    const Value* wanted = args.Get(0, "value");
    if (wanted == nullptr) return Bad(absl::StrCat(name, " needs a value"));
    const auto equal = [&](const Value& v) { return Equal(v, *wanted); };
    if (name == "count") {
      return Value(static_cast<int64_t>(std::count_if(list->begin(), list->end(), equal)));
    }
    const auto at = std::find_if(list->begin(), list->end(), equal);
    if (at == list->end()) return Bad(absl::StrCat(wanted->Str(), " is not in list"));
    return Value(static_cast<int64_t>(at - list->begin()));
  }
  if (name == "items") return Items(self);
  if (name == "get") {
    const Value *key = args.Get(0, "key"), *fallback = args.Get(1, "default");
    const Value* found = key && key->AsString() ? self.Find(*key->AsString()) : nullptr;
    return found ? *found : fallback ? *fallback : Value(None{});
  }
  List out;
  for (const auto& [key, value] : *self.AsDict())
    out.push_back(name == "keys" ? Value(key) : value);
  return Value(std::move(out));
}

}  // namespace switchyard::jinja
