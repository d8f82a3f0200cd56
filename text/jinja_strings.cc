#include "text/jinja_strings.h"

#include <utf8proc.h>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "text/utf8.h"

namespace switchyard::jinja {
namespace {

// Python's str.isspace: White_Space and the four information separators.
bool IsPythonSpace(char32_t c) { return IsWhiteSpace(c) || (c >= 0x1c && c <= 0x1f); }

absl::Status Bad(std::string_view what) {
  return absl::InvalidArgumentError(absl::string_view(what.data(), what.size()));
}

enum class Case { kUpper, kLower, kCapitalize, kTitle };

std::string ChangeCase(std::string_view text, Case to) {
  std::string out;
  bool word_start = true;
  while (!text.empty()) {
    const CodePoint c = FirstCodePoint(text);
    text.remove_prefix(c.length);
    const bool upper = to == Case::kUpper || (to != Case::kLower && word_start);
    const auto value = static_cast<utf8proc_int32_t>(c.value);
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

constexpr std::string_view kMethods[] = {"strip",      "lstrip",     "rstrip", "upper",
                                         "lower",      "capitalize", "title",  "replace",
                                         "startswith", "endswith",   "split"};

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
  return Bad(absl::StrCat("method '", name, "' of str is not supported"));
}

}  // namespace switchyard::jinja
