#include "text/regex_syntax.h"

#include <algorithm>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "text/utf8.h"

namespace switchyard {
namespace {

constexpr int kDepthMax = 100;  // of nested classes and groups
constexpr char kWord[] = "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}";

struct Name {
  std::string_view from, to;
};
// Oniguruma's spellings of properties that are not scripts, and PCRE2's.
constexpr Name kProperties[] = {
    {"Letter", "L"},
    {"Uppercase_Letter", "Lu"},
    {"Lowercase_Letter", "Ll"},
    {"Titlecase_Letter", "Lt"},
    {"Modifier_Letter", "Lm"},
    {"Other_Letter", "Lo"},
    {"Mark", "M"},
    {"Nonspacing_Mark", "Mn"},
    {"Spacing_Mark", "Mc"},
    {"Number", "N"},
    {"Decimal_Number", "Nd"},
    {"Letter_Number", "Nl"},
    {"Other_Number", "No"},
    {"Punctuation", "P"},
    {"Punct", "P"},
    {"Symbol", "S"},
    {"Math_Symbol", "Sm"},
    {"Currency_Symbol", "Sc"},
    {"Separator", "Z"},
    {"Space_Separator", "Zs"},
    {"Other", "C"},
    {"Control", "Cc"},
    {"Format", "Cf"},
    {"Digit", "Nd"},
    {"Alpha", "Alphabetic"},
    {"Alphabetic", "Alphabetic"},
    {"Space", "White_Space"},
    {"White_Space", "White_Space"},
    {"Upper", "Uppercase"},
    {"Uppercase", "Uppercase"},
    {"Lower", "Lowercase"},
    {"Lowercase", "Lowercase"},
    {"Emoji", "Emoji"},
    {"Any", "Any"},
    {"Ideographic", "Ideographic"},
};

class Translator {
 public:
  explicit Translator(std::string_view pattern) : in_(pattern) {}

  absl::StatusOr<std::string> Run() {
    while (pos_ < in_.size()) RETURN_IF_ERROR(Step());
    return std::move(out_);
  }

 private:
  absl::Status Refuse(std::string_view what) const {
    return absl::InvalidArgumentError(
        absl::StrCat("regex '", Shortened(in_), "', offset ", pos_, ": ",
                     absl::string_view(what.data(), what.size()), " is not supported"));
  }
  char Peek(size_t ahead = 0) const { return pos_ + ahead < in_.size() ? in_[pos_ + ahead] : '\0'; }

  absl::Status Step() {
    const char c = in_[pos_];
    if (c == '\\') {
      atom_ = out_.size();
      return Escape(/*in_class=*/false, &out_);
    }
    if (c == '[') {
      atom_ = out_.size();
      ASSIGN_OR_RETURN(Class set, ParseClass(0));
      absl::StrAppend(&out_, set.whole);
      return absl::OkStatus();
    }
    if (c == '{') return Interval();
    if (c == '(') {
      if (groups_.size() == kDepthMax) return Refuse("a group nested more than 100 deep");
      groups_.push_back(out_.size());
      return Group();
    }
    if (c == ')' && !groups_.empty()) {
      atom_ = groups_.back();
      groups_.pop_back();
    } else if (c != '?' && c != '*' && c != '+' && (c & 0xc0) != 0x80) {
      atom_ = out_.size();
    }
    out_.push_back(c);
    ++pos_;
    return absl::OkStatus();
  }

  // (?flags) and (?flags:…): Ruby's m is PCRE2's s.
  absl::Status Group() {
    out_.push_back('(');
    ++pos_;
    if (Peek() != '?') return absl::OkStatus();
    size_t end = pos_ + 1;
    while (end < in_.size() && std::string_view("imx-").find(in_[end]) != in_.npos) ++end;
    if (end == in_.size() || (in_[end] != ':' && in_[end] != ')')) return absl::OkStatus();
    for (; pos_ < end; ++pos_) out_.push_back(in_[pos_] == 'm' ? 's' : in_[pos_]);
    return absl::OkStatus();
  }

  // {n}, {n,}, {,m}, {n,m}; anything else in braces is literal in both dialects.
  absl::Status Interval() {
    size_t end = pos_ + 1;
    while (end < in_.size() &&
           (std::isdigit(static_cast<unsigned char>(in_[end])) || in_[end] == ',')) {
      ++end;
    }
    if (end == in_.size() || in_[end] != '}' || end == pos_ + 1) {
      atom_ = out_.size();
      out_.push_back('{');
      ++pos_;
      return absl::OkStatus();
    }
    if (in_[pos_ + 1] == ',') {
      out_.append("{0");
      ++pos_;
    }
    out_.append(in_.substr(pos_, end + 1 - pos_));
    pos_ = end + 1;
    if (Peek() == '+') {  // repeats the repetition, so it becomes a group of its own
      out_.insert(atom_, "(?:");
      out_.push_back(')');
    }
    return absl::OkStatus();
  }

  absl::Status Escape(bool in_class, std::string* out) {
    if (pos_ + 1 >= in_.size()) return Refuse("a backslash at the end");
    const char c = in_[pos_ + 1];
    if (c == 'p' || c == 'P') return Property(out);
    if (c == 'u') {
      if (pos_ + 6 > in_.size()) return Refuse("a short \\u");
      absl::StrAppend(out, "\\x{", std::string(in_.substr(pos_ + 2, 4)), "}");
      pos_ += 6;
      return absl::OkStatus();
    }
    const auto set = [&](const char* items) {
      return in_class ? std::string(items) : absl::StrCat("[", items, "]");
    };
    std::string to;
    if (c == 's')
      to = "\\p{White_Space}";
    else if (c == 'S')
      to = "\\P{White_Space}";
    else if (c == 'w')
      to = set(kWord);
    else if (c == 'h')
      to = set("0-9A-Fa-f");
    else if (c == 'W' || c == 'H') {
      if (in_class) return Refuse("\\W or \\H in a class");
      to = absl::StrCat("[^", c == 'W' ? kWord : "0-9A-Fa-f", "]");
    } else if ((c == 'b' || c == 'B') && !in_class) {
      const std::string w = set(kWord);
      to = c == 'b' ? absl::StrCat("(?:(?<=", w, ")(?!", w, ")|(?<!", w, ")(?=", w, "))")
                    : absl::StrCat("(?:(?<=", w, ")(?=", w, ")|(?<!", w, ")(?!", w, "))");
    } else if (c == 'v') {
      to = "\\x0b";  // to PCRE2 all vertical white space
    } else if (c == 'Q' || c == 'E' || c == 'V') {
      to = std::string(1, c);  // plain letters here, quotes and a class to PCRE2
    } else if (c == 'K' || c == 'C' || c == 'R' || c == 'X') {
      return Refuse(std::string("\\") + c);
    } else {
      to = absl::StrCat("\\", std::string(1, c));
    }
    absl::StrAppend(out, to);
    pos_ += 2;
    return absl::OkStatus();
  }

  absl::Status Property(std::string* out) {
    const char kind = in_[pos_ + 1];
    if (Peek(2) != '{') {  // \pL
      if (Peek(2) == '\0') return Refuse("an unfinished \\p");
      absl::StrAppend(out, std::string(in_.substr(pos_, 3)));
      pos_ += 3;
      return absl::OkStatus();
    }
    const size_t end = in_.find('}', pos_);
    if (end == in_.npos) return Refuse("an unfinished \\p");
    std::string_view name = in_.substr(pos_ + 3, end - pos_ - 3);
    const bool caret = !name.empty() && name[0] == '^';
    if (caret) name.remove_prefix(1);
    std::string to;
    for (const Name& p : kProperties) {
      if (p.from == name) to = p.to;
    }
    if (to.empty())
      to = name.size() <= 2 ? std::string(name) : absl::StrCat("sc:", std::string(name));
    absl::StrAppend(out, (kind == 'P') != caret ? "\\P{" : "\\p{", to, "}");
    pos_ = end + 1;
    return absl::OkStatus();
  }

  struct Class {
    std::string whole;  // as an atom
    std::string items;  // what stands between the brackets, if it is a plain positive class
    bool plain = false;
  };

  absl::StatusOr<Class> ParseClass(int depth) {
    if (depth == kDepthMax) return Refuse("a class nested more than 100 deep");
    ++pos_;
    const bool negated = Peek() == '^';
    if (negated) ++pos_;
    std::vector<std::string> operands;  // of &&, each an atom
    std::string items, nested;          // nested: a class that cannot be flattened
    const auto finish_operand = [&]() -> absl::Status {
      if (!nested.empty() && !items.empty()) return Refuse("a union with a negated class");
      if (nested.empty() && items.empty()) return Refuse("an empty class");
      operands.push_back(nested.empty() ? absl::StrCat("[", items, "]") : nested);
      return absl::OkStatus();
    };
    for (bool first = true;; first = false) {
      if (pos_ >= in_.size()) return Refuse("an unfinished class");
      const char c = in_[pos_];
      if (c == ']' && !first) break;
      if (c == '\\') {
        RETURN_IF_ERROR(Escape(/*in_class=*/true, &items));
      } else if (c == '[' && Peek(1) == ':') {
        RETURN_IF_ERROR(PosixClass(&items));
      } else if (c == '[') {
        ASSIGN_OR_RETURN(Class inner, ParseClass(depth + 1));
        if (!inner.plain && !nested.empty()) return Refuse("a union with a negated class");
        (inner.plain ? items : nested) += inner.plain ? inner.items : inner.whole;
      } else if (c == '&' && Peek(1) == '&') {
        RETURN_IF_ERROR(finish_operand());
        items.clear();
        nested.clear();
        pos_ += 2;
      } else {
        if (c == ']') items.push_back('\\');
        items.push_back(c);
        ++pos_;
      }
    }
    ++pos_;
    if (operands.empty() && nested.empty()) {
      return Class{absl::StrCat(negated ? "[^" : "[", items, "]"), items, !negated};
    }
    RETURN_IF_ERROR(finish_operand());
    std::string all = "(?:";
    for (size_t i = 0; i + 1 < operands.size(); ++i) absl::StrAppend(&all, "(?=", operands[i], ")");
    absl::StrAppend(&all, operands.back(), ")");
    if (negated) all = absl::StrCat("(?:(?!", all, ")\\p{Any})");
    return Class{all, "", false};
  }

  absl::Status PosixClass(std::string* items) {
    static constexpr Name kPosix[] = {
        {"[:alpha:]", "\\p{Alphabetic}"},  {"[:digit:]", "\\p{Nd}"},
        {"[:space:]", "\\p{White_Space}"}, {"[:upper:]", "\\p{Uppercase}"},
        {"[:lower:]", "\\p{Lowercase}"},   {"[:word:]", kWord}};
    for (const Name& p : kPosix) {
      if (in_.substr(pos_, p.from.size()) != p.from) continue;
      items->append(p.to);
      pos_ += p.from.size();
      return absl::OkStatus();
    }
    return Refuse("this bracket class");
  }

  std::string_view in_;
  size_t pos_ = 0;
  std::string out_;
  size_t atom_ = 0;             // where the last atom begins in out_
  std::vector<size_t> groups_;  // where each open group begins in out_
};

}  // namespace

absl::StatusOr<std::string> OnigurumaToPcre2(std::string_view pattern) {
  return Translator(pattern).Run();
}

}  // namespace switchyard
