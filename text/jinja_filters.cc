#include "text/jinja_filters.h"

#include <algorithm>
#include <cmath>
#include <set>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "text/jinja_interpreter.h"
#include "text/jinja_strings.h"

namespace switchyard::jinja {
namespace {

absl::Status Bad(std::string_view what) {
  return absl::InvalidArgumentError(absl::string_view(what.data(), what.size()));
}

bool Flag(const Arguments& args, size_t index, std::string_view name, bool otherwise) {
  const Value* value = args.Get(index, name);
  return value == nullptr ? otherwise : value->Truthy();
}

Value Attribute(const Value& item, const Value* attribute) {
  return attribute && !attribute->IsNone() ? GetPath(item, *attribute) : item;
}

// What two items are compared by: an attribute, without case if they are strings.
Value KeyOf(const Value& item, const Value* attribute, bool case_sensitive) {
  Value key = Attribute(item, attribute);
  if (case_sensitive || key.AsString() == nullptr) return key;
  return *CallStringMethod(*key.AsString(), "lower", {});
}

// Sorts by key, equal ones in their order; a pair that has none is the error.
absl::Status SortByKeys(std::vector<std::pair<Value, Value>>* keyed, bool reverse) {
  absl::Status status;
  std::stable_sort(keyed->begin(), keyed->end(), [&](const auto& a, const auto& b) {
    const absl::StatusOr<bool> less = reverse ? Less(b.first, a.first) : Less(a.first, b.first);
    if (!less.ok()) status = less.status();
    return less.ok() && *less;
  });
  return status;
}

absl::StatusOr<Value> Sort(const Value& in, const Arguments& args) {
  ASSIGN_OR_RETURN(const List items, Iterate(in));
  const bool case_sensitive = Flag(args, 1, "case_sensitive", false);
  std::vector<std::pair<Value, Value>> keyed;
  for (const Value& item : items) {
    keyed.emplace_back(KeyOf(item, args.Get(2, "attribute"), case_sensitive), item);
  }
  RETURN_IF_ERROR(SortByKeys(&keyed, Flag(args, 0, "reverse", false)));
  List out;
  for (auto& [key, item] : keyed) out.push_back(std::move(item));
  return Value(std::move(out));
}

absl::StatusOr<Value> DictSort(const Value& in, const Arguments& args) {
  if (in.AsDict() == nullptr) return Bad(absl::StrCat("dictsort of ", in.TypeName()));
  const Value* by = args.Get(1, "by");
  const bool by_value = by != nullptr && by->Str() == "value";
  std::vector<std::pair<Value, Value>> keyed;
  for (const auto& [key, value] : *in.AsDict()) {
    keyed.emplace_back(
        KeyOf(by_value ? value : Value(key), nullptr, Flag(args, 0, "case_sensitive", false)),
        Value(List{Value(key), value}));
  }
  RETURN_IF_ERROR(SortByKeys(&keyed, Flag(args, 2, "reverse", false)));
  List out;
  for (auto& [key, item] : keyed) out.push_back(std::move(item));
  return Value(std::move(out));
}

// In the order of their first appearance.
absl::StatusOr<Value> Unique(const Value& in, const Arguments& args) {
  constexpr size_t kOthersMax = 4096;  // what is no string is compared with all before it
  ASSIGN_OR_RETURN(const List items, Iterate(in));
  std::set<std::string> strings;
  List keys, out;
  for (const Value& item : items) {
    Value key = KeyOf(item, args.Get(1, "attribute"), Flag(args, 0, "case_sensitive", false));
    if (key.AsList() || key.AsDict()) return Bad(absl::StrCat("unique of a ", key.TypeName()));
    if (const auto* text = key.AsString()) {
      if (strings.insert(*text).second) out.push_back(item);
      continue;
    }
    if (std::any_of(keys.begin(), keys.end(), [&](const Value& k) { return Equal(k, key); })) {
      continue;
    }
    if (keys.size() == kOthersMax) return Bad(absl::StrCat("unique of more than ", kOthersMax));
    keys.push_back(std::move(key));
    out.push_back(item);
  }
  return Value(std::move(out));
}

absl::StatusOr<Value> Extreme(const std::string& name, const Value& in, const Arguments& args) {
  ASSIGN_OR_RETURN(const List items, Iterate(in));
  if (items.empty()) return Value(Undefined{name});
  const auto key = [&](const Value& item) {
    return KeyOf(item, args.Get(1, "attribute"), Flag(args, 0, "case_sensitive", false));
  };
  Value best = items[0], best_key = key(items[0]);
  for (const Value& item : items) {
    const Value item_key = key(item);
    ASSIGN_OR_RETURN(const bool better,
                     name == "min" ? Less(item_key, best_key) : Less(best_key, item_key));
    if (better) best = item, best_key = item_key;
  }
  return best;
}

absl::StatusOr<Value> SumOfLists(const List& items, const Value* attribute, List sum) {
  size_t weight = 0;
  for (const Value& item : items) {
    const Value more = Attribute(item, attribute);
    if (!more.AsList()) return Bad(absl::StrCat("sum of a list and a ", more.TypeName()));
    if ((weight += more.weight()) > kBytesMax) return TooLong();
    sum.insert(sum.end(), more.AsList()->begin(), more.AsList()->end());
  }
  return Value(std::move(sum));
}

absl::StatusOr<Value> Sum(const Value& in, const Arguments& args) {
  ASSIGN_OR_RETURN(const List items, Iterate(in));
  const Value *attribute = args.Get(0, "attribute"), *start = args.Get(1, "start");
  if (start && start->AsString()) return Bad("sum of strings: join does that");
  if (start && start->AsList()) return SumOfLists(items, attribute, *start->AsList());
  Value sum = start ? *start : Value(int64_t{0});
  for (const Value& item : items) {
    ASSIGN_OR_RETURN(sum, Arithmetic("+", sum, Attribute(item, attribute)));
  }
  return sum;
}

absl::StatusOr<Value> Indent(const std::string& in, const Arguments& args) {
  const Value* width = args.Get(0, "width");
  std::string by(4, ' ');
  if (width != nullptr && width->AsString()) by = *width->AsString();
  if (width != nullptr && width->IsInt()) {
    if (width->ToInt() < 0 || width->ToInt() > 1024) return Bad("indent takes a width to 1024");
    by.assign(static_cast<size_t>(width->ToInt()), ' ');
  }
  const bool first = Flag(args, 1, "first", false), blank = Flag(args, 2, "blank", false);
  std::string out = first ? by : "";
  for (size_t i = 0; i < in.size(); ++i) {
    out.push_back(in[i]);
    const bool next_is_blank = i + 1 == in.size() || in[i + 1] == '\n';
    if (in[i] == '\n' && (blank || !next_is_blank)) out += by;
    if (out.size() > kBytesMax) return TooLong();
  }
  return Value(std::move(out));
}

// Python's round: halves go to the even neighbour.
absl::StatusOr<Value> Round(const Value& in, const Arguments& args) {
  const Value *precision = args.Get(0, "precision"), *method = args.Get(1, "method");
  const int64_t digits = precision && precision->IsInt() ? precision->ToInt() : 0;
  if (!in.IsNumber() || digits < 0 || digits > 15)
    return Bad("round takes a number, 0 to 15 digits");
  const std::string how = method ? method->Str() : "common";
  if (how == "common") {
    if (in.IsInt() && digits == 0) return Value(in.ToInt());
    char text[400];
    std::snprintf(text, sizeof(text), "%.*f", static_cast<int>(digits), in.ToDouble());
    return Value(std::strtod(text, nullptr));
  }
  const double scale = std::pow(10.0, static_cast<double>(digits));
  if (how == "ceil") return Value(std::ceil(in.ToDouble() * scale) / scale);
  if (how == "floor") return Value(std::floor(in.ToDouble() * scale) / scale);
  return Bad("round goes common, ceil or floor");
}

absl::StatusOr<Value> Batch(const Value& in, const Arguments& args) {
  const Value *size = args.Get(0, "linecount"), *fill = args.Get(1, "fill_with");
  if (!size || !size->IsInt() || size->ToInt() < 1) return Bad("batch takes a size from 1");
  ASSIGN_OR_RETURN(const List items, Iterate(in));
  const auto n = static_cast<size_t>(size->ToInt());
  List out, row;
  for (const Value& item : items) {
    row.push_back(item);
    if (row.size() == n) out.emplace_back(std::exchange(row, {}));
  }
  if (row.empty()) return Value(std::move(out));
  while (fill && !fill->IsNone() && row.size() < n && n <= items.size()) row.push_back(*fill);
  out.emplace_back(std::move(row));
  return Value(std::move(out));
}

absl::StatusOr<Value> Escape(const std::string& in) {
  static constexpr std::pair<char, std::string_view> kNames[] = {
      {'&', "&amp;"}, {'<', "&lt;"}, {'>', "&gt;"}, {'\'', "&#39;"}, {'"', "&#34;"}};
  std::string out;
  for (const char c : in) {
    const auto* name = std::find_if(std::begin(kNames), std::end(kNames),
                                    [c](const auto& n) { return n.first == c; });
    if (name == std::end(kNames)) {
      out.push_back(c);
    } else {
      out += name->second;
    }
  }
  return Value(std::move(out));
}

constexpr std::string_view kFilters[] = {
    "abs",     "attr",     "batch",  "capitalize", "center",     "count",      "d",
    "default", "dictsort", "e",      "escape",     "first",      "float",      "format",
    "indent",  "int",      "items",  "join",       "last",       "length",     "list",
    "lower",   "map",      "max",    "min",        "reject",     "rejectattr", "replace",
    "reverse", "round",    "safe",   "select",     "selectattr", "sort",       "string",
    "sum",     "title",    "tojson", "trim",       "unique",     "upper",      "wordcount"};
constexpr std::string_view kTests[] = {
    "boolean", "callable", "defined",  "divisibleby", "eq",      "equalto", "even",      "false",
    "filter",  "float",    "ge",       "greaterthan", "gt",      "in",      "integer",   "iterable",
    "le",      "lessthan", "lower",    "lt",          "mapping", "ne",      "none",      "number",
    "odd",     "sameas",   "sequence", "string",      "test",    "true",    "undefined", "upper"};

}  // namespace

bool IsFilter(std::string_view name) {
  return std::find(std::begin(kFilters), std::end(kFilters), name) != std::end(kFilters);
}
bool IsTest(std::string_view name) {
  return std::find(std::begin(kTests), std::end(kTests), name) != std::end(kTests);
}

absl::StatusOr<Value> ApplyListFilter(const std::string& name, const Value& in,
                                      const Arguments& args) {
  if (name == "sort") return Sort(in, args);
  if (name == "dictsort") return DictSort(in, args);
  if (name == "unique") return Unique(in, args);
  if (name == "min" || name == "max") return Extreme(name, in, args);
  if (name == "sum") return Sum(in, args);
  if (name == "indent") return Indent(in.Str(), args);
  if (name == "round") return Round(in, args);
  if (name == "batch") return Batch(in, args);
  if (name == "e" || name == "escape") return Escape(in.Str());
  if (name == "attr" && args.Get(0, "name")) return GetItem(in, *args.Get(0, "name"));
  if (name == "format") return Arithmetic("%", Value(in.Str()), Value(args.positional));
  if (name == "wordcount") {
    ASSIGN_OR_RETURN(const Value words, CallStringMethod(in.Str(), "split", {}));
    return Value(static_cast<int64_t>(words.AsList()->size()));
  }
  if (name == "center") {
    Arguments width = args;
    if (args.Get(0, "width") == nullptr)
      width.positional.insert(width.positional.begin(), Value(int64_t{80}));
    return CallStringMethod(in.Str(), "center", width);
  }
  return Bad(absl::StrCat("filter '", name, "' of ", in.TypeName(), " is not supported"));
}

}  // namespace switchyard::jinja
