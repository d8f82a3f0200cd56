#include "text/jinja_strings.h"

#include <utf8proc.h>

#include <algorithm>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "text/utf8.h"

namespace switchyard::jinja {
namespace {

constexpr size_t kItemsMax = kBytesMax / Value::kBytes;  // of a list that split makes

// Python's str.isspace: White_Space and the four information separators.
bool IsPythonSpace(char32_t c) { return IsWhiteSpace(c) || (c >= 0x1c && c <= 0x1f); }

absl::Status Bad(std::string_view what) {
  return absl::InvalidArgumentError(absl::string_view(what.data(), what.size()));
}

enum class Case { kUpper, kLower, kCapitalize, kTitle, kSwap };

std::string ChangeCase(std::string_view text, Case to) {
  std::string out;
  bool word_start = true;
  while (!text.empty()) {
    const CodePoint c = FirstCodePoint(text);
    text.remove_prefix(c.length);
    const auto value = static_cast<utf8proc_int32_t>(c.value);
    const bool upper = to == Case::kUpper ||
                       (to == Case::kSwap && utf8proc_tolower(value) == value) ||
                       (to != Case::kLower && to != Case::kSwap && word_start);
    if (upper && c.value == 0xdf) {  // ß, the one common letter whose capital is two
      out.append(to == Case::kUpper ? "SS" : "Ss");
      word_start = false;
      continue;
    }
    AppendUtf8(upper ? utf8proc_toupper(value) : utf8proc_tolower(value), &out);
    word_start = to == Case::kTitle && utf8proc_toupper(value) == utf8proc_tolower(value);
  }
  return out;
}

absl::StatusOr<Value> Replace(const std::string& self, const Arguments& args) {
  const Value *from = args.Get(0, "old"), *to = args.Get(1, "new"), *count = args.Get(2, "count");
  if (!from || !to) return Bad("replace needs two strings");
  const std::string old_text = from->Str(), new_text = to->Str();
  if (old_text.empty()) return Bad("replace of an empty string");
  int64_t left = count && count->IsInt() && count->ToInt() >= 0 ? count->ToInt() : INT64_MAX;
  std::string out;
  size_t done = 0;
  for (size_t at; left > 0 && (at = self.find(old_text, done)) != self.npos; --left) {
    out.append(self, done, at - done).append(new_text);
    done = at + old_text.size();
    if (out.size() > kBytesMax) return TooLong();
  }
  out.append(self, done);
  return Value(std::move(out));
}

absl::StatusOr<Value> Split(std::string_view self, const Arguments& args) {
  const Value *separator = args.Get(0, "sep"), *count = args.Get(1, "maxsplit");
  int64_t left = count && count->IsInt() && count->ToInt() >= 0 ? count->ToInt() : INT64_MAX;
  List out;
  if (!separator || separator->IsNone()) {  // runs of white space
    self = Strip(self, nullptr, true, false);
    while (!self.empty() && left-- > 0) {
      size_t end = 0;
      while (end < self.size() && !IsPythonSpace(FirstCodePoint(self.substr(end)).value)) {
        end += FirstCodePoint(self.substr(end)).length;
      }
      out.emplace_back(std::string(self.substr(0, end)));
      if (out.size() > kItemsMax) return TooLong();
      self = Strip(self.substr(end), nullptr, true, false);
    }
    self = Strip(self, nullptr, false, true);
    if (!self.empty()) out.emplace_back(std::string(self));
    return Value(std::move(out));
  }
  const std::string* by = separator->AsString();
  if (!by || by->empty()) return Bad("split needs a separator that is a string and not empty");
  for (size_t at; left-- > 0 && (at = self.find(*by)) != self.npos;) {
    out.emplace_back(std::string(self.substr(0, at)));
    if (out.size() > kItemsMax) return TooLong();
    self.remove_prefix(at + by->size());
  }
  out.emplace_back(std::string(self));
  return Value(std::move(out));
}

absl::StatusOr<Value> HasAffix(const std::string& self, bool start, const Arguments& args) {
  const Value* affix = args.Get(0, "prefix");
  if (!affix) return Bad("startswith and endswith need an argument");
  ASSIGN_OR_RETURN(const List affixes, affix->AsString() ? List{*affix} : Iterate(*affix));
  for (const Value& a : affixes) {
    if (!a.AsString()) return Bad("startswith and endswith need strings");
    if (start ? self.starts_with(*a.AsString()) : self.ends_with(*a.AsString())) return Value(true);
  }
  return Value(false);
}

// The last maxsplit separators; white space only as a separator that is given.
absl::StatusOr<Value> SplitFromRight(std::string_view self, const Arguments& args) {
  const Value *separator = args.Get(0, "sep"), *count = args.Get(1, "maxsplit");
  int64_t left = count && count->IsInt() && count->ToInt() >= 0 ? count->ToInt() : INT64_MAX;
  if (!separator || separator->IsNone()) return Bad("rsplit without a separator is not supported");
  const std::string* by = separator->AsString();
  if (!by || by->empty()) return Bad("rsplit needs a separator that is not empty");
  List out;
  for (size_t at; left-- > 0 && (at = self.rfind(*by)) != self.npos;) {
    out.emplace_back(std::string(self.substr(at + by->size())));
    if (out.size() > kItemsMax) return TooLong();
    self = self.substr(0, at);
  }
  out.emplace_back(std::string(self));
  std::reverse(out.begin(), out.end());
  return Value(std::move(out));
}

absl::StatusOr<Value> SplitLines(std::string_view self) {
  List out;
  while (!self.empty()) {
    const size_t end = std::min(self.find_first_of("\n\r"), self.size());
    out.emplace_back(std::string(self.substr(0, end)));
    if (out.size() > kItemsMax) return TooLong();
    const bool pair = self.substr(end, 2) == "\r\n";
    self.remove_prefix(std::min(self.size(), end + (pair ? 2 : 1)));
  }
  return Value(std::move(out));
}

// find, rfind, index, rindex, count: positions are of characters.
absl::StatusOr<Value> Search(const std::string& self, const std::string& name,
                             const Arguments& args) {
  const Value* part = args.Get(0, "sub");
  if (!part || !part->AsString() || args.positional.size() > 1) {
    return Bad(absl::StrCat(name, " needs one string"));
  }
  const std::string& text = *part->AsString();
  if (name == "count") {
    if (text.empty()) return Value(static_cast<int64_t>(CountCodePoints(self)) + 1);
    int64_t count = 0;
    for (size_t at = 0; (at = self.find(text, at)) != self.npos; at += text.size()) ++count;
    return Value(count);
  }
  const size_t at = name[0] == 'r' ? self.rfind(text) : self.find(text);
  if (at == self.npos) {
    return name.ends_with("find") ? absl::StatusOr<Value>(int64_t{-1}) : Bad("substring not found");
  }
  return Value(static_cast<int64_t>(CountCodePoints(std::string_view(self).substr(0, at))));
}

absl::StatusOr<Value> Partition(const std::string& self, bool from_right, const Arguments& args) {
  const Value* separator = args.Get(0, "sep");
  if (!separator || !separator->AsString() || separator->AsString()->empty()) {
    return Bad("partition needs a separator that is a string and not empty");
  }
  const std::string& by = *separator->AsString();
  const size_t at = from_right ? self.rfind(by) : self.find(by);
  if (at == self.npos) {
    return from_right ? Value(List{"", "", self}) : Value(List{self, "", ""});
  }
  return Value(List{self.substr(0, at), by, self.substr(at + by.size())});
}

// isdigit, isalpha, …: every character is one, and there is one.
bool AllAre(const std::string& name, std::string_view text) {
  bool cased = false;
  const bool by_case = name == "isupper" || name == "islower";
  if (text.empty()) return false;
  while (!text.empty()) {
    const CodePoint c = FirstCodePoint(text);
    text.remove_prefix(c.length);
    const auto value = static_cast<utf8proc_int32_t>(c.value);
    const utf8proc_category_t category = utf8proc_category(value);
    const bool letter = category >= UTF8PROC_CATEGORY_LU && category <= UTF8PROC_CATEGORY_LO;
    const bool digit = category == UTF8PROC_CATEGORY_ND;
    if (by_case) {
      const bool upper = category == UTF8PROC_CATEGORY_LU, lower = category == UTF8PROC_CATEGORY_LL;
      if (name == "isupper" ? lower : upper) return false;
      cased = cased || upper || lower;
    } else if (!(name == "isspace"   ? IsPythonSpace(c.value)
                 : name == "isalpha" ? letter
                 : name == "isalnum" ? letter || digit
                                     : digit)) {
      return false;
    }
  }
  return !by_case || cased;
}

// ljust, rjust, center, zfill: to a width in characters.
absl::StatusOr<Value> Pad(const std::string& self, const std::string& name, const Arguments& args) {
  const Value *width = args.Get(0, "width"), *fill = args.Get(1, "fillchar");
  if (!width || !width->IsInt() || width->ToInt() > static_cast<int64_t>(kBytesMax / 4)) {
    return Bad(absl::StrCat(name, " needs a width that is not too large"));
  }
  const std::string with = name == "zfill" ? "0" : fill ? fill->Str() : " ";
  if (CountCodePoints(with) != 1) return Bad(absl::StrCat(name, " needs one character"));
  const int64_t missing = width->ToInt() - static_cast<int64_t>(CountCodePoints(self));
  if (missing <= 0) return Value(self);
  // Python's center puts the odd one to the left if the width is odd.
  const int64_t left = name == "ljust"    ? 0
                       : name == "center" ? missing / 2 + (missing & width->ToInt() & 1)
                                          : missing;
  std::string before, after;
  for (int64_t i = 0; i < left; ++i) before += with;
  for (int64_t i = left; i < missing; ++i) after += with;
  const bool sign = name == "zfill" && (self[0] == '-' || self[0] == '+');
  if (sign) return Value(self.substr(0, 1) + before + self.substr(1));
  return Value(before + self + after);
}

// str.format with plain fields: {}, {0}, {name}.
absl::StatusOr<Value> Format(std::string_view self, const Arguments& args) {
  std::string out;
  size_t next = 0;
  while (!self.empty()) {
    const size_t at = std::min(self.find_first_of("{}"), self.size());
    out.append(self.substr(0, at));
    self.remove_prefix(at);
    if (self.empty()) break;
    if (self.substr(0, 2) == "{{" || self.substr(0, 2) == "}}") {
      out.push_back(self[0]);
      self.remove_prefix(2);
      continue;
    }
    const size_t end = self.find('}');
    if (self[0] == '}' || end == self.npos) return Bad("format: a single brace");
    const std::string name(self.substr(1, end - 1));
    self.remove_prefix(end + 1);
    size_t index = args.positional.size();
    if (name.empty()) index = next++;
    if (!name.empty() && !absl::SimpleAtoi(name, &index)) index = args.positional.size();
    const Value* value = args.Get(index, name);
    if (value == nullptr) {
      return Bad(absl::StrCat("format: field '", name, "' is not there, or not supported"));
    }
    out += value->Str();
    if (out.size() > kBytesMax) return TooLong();
  }
  return Value(std::move(out));
}

constexpr std::string_view kMethods[] = {
    "strip",   "lstrip",  "rstrip",  "upper",      "lower",        "capitalize",   "title",
    "replace", "split",   "rsplit",  "splitlines", "startswith",   "endswith",     "join",
    "find",    "rfind",   "index",   "rindex",     "count",        "partition",    "rpartition",
    "isdigit", "isalpha", "isalnum", "isspace",    "isupper",      "islower",      "zfill",
    "ljust",   "rjust",   "center",  "swapcase",   "removeprefix", "removesuffix", "format"};

}  // namespace

std::string_view Strip(std::string_view text, const std::string* chars, bool left, bool right) {
  const auto drop = [&](std::string_view character) {
    return chars ? chars->find(character) != chars->npos
                 : IsPythonSpace(FirstCodePoint(character).value);
  };
  while (left && !text.empty()) {
    const size_t length = FirstCodePoint(text).length;
    if (!drop(text.substr(0, length))) break;
    text.remove_prefix(length);
  }
  while (right && !text.empty()) {
    const size_t last = LastCodePointOffset(text);
    if (!drop(text.substr(last))) break;
    text = text.substr(0, last);
  }
  return text;
}

bool HasStringMethod(std::string_view name) {
  for (std::string_view method : kMethods) {
    if (method == name) return true;
  }
  return false;
}

absl::StatusOr<Value> CallStringMethod(const std::string& self, const std::string& name,
                                       const Arguments& args) {
  if (name == "strip" || name == "lstrip" || name == "rstrip") {
    const Value* chars = args.Get(0, "chars");
    return Value(std::string(
        Strip(self, chars ? chars->AsString() : nullptr, name != "rstrip", name != "lstrip")));
  }
  if (name == "upper") return Value(ChangeCase(self, Case::kUpper));
  if (name == "lower") return Value(ChangeCase(self, Case::kLower));
  if (name == "capitalize") return Value(ChangeCase(self, Case::kCapitalize));
  if (name == "title") return Value(ChangeCase(self, Case::kTitle));
  if (name == "replace") return Replace(self, args);
  if (name == "split") return Split(self, args);
  if (name == "startswith" || name == "endswith") {
    return HasAffix(self, name == "startswith", args);
  }
  if (name == "rsplit") return SplitFromRight(self, args);
  if (name == "splitlines") return SplitLines(self);
  if (name == "partition" || name == "rpartition") return Partition(self, name[0] == 'r', args);
  if (name == "zfill" || name == "ljust" || name == "rjust" || name == "center") {
    return Pad(self, name, args);
  }
  if (name == "swapcase") return Value(ChangeCase(self, Case::kSwap));
  if (name == "format") return Format(self, args);
  if (name.starts_with("is")) return Value(AllAre(name, self));
  if (name == "removeprefix" || name == "removesuffix") {
    const Value* affix = args.Get(0, "affix");
    if (!affix || !affix->AsString()) return Bad(absl::StrCat(name, " needs a string"));
    const std::string& text = *affix->AsString();
    const bool prefix = name == "removeprefix";
    if (prefix ? !self.starts_with(text) : !self.ends_with(text)) return Value(self);
    return Value(prefix ? self.substr(text.size()) : self.substr(0, self.size() - text.size()));
  }
  if (name == "join") {
    const Value* items = args.Get(0, "iterable");
    if (items == nullptr) return Bad("join needs a list");
    return ApplyFilter("join", *items, {.positional = {Value(self)}, .named = {}});
  }
  return Search(self, name, args);
}

}  // namespace switchyard::jinja
