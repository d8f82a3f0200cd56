#include "text/jinja_lexer.h"

#include <algorithm>
#include <cctype>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "text/utf8.h"

namespace switchyard::jinja {
namespace {

bool IsSpace(char c) { return std::isspace(static_cast<unsigned char>(c)); }
bool IsDigit(char c) { return c >= '0' && c <= '9'; }
bool IsNameStart(char c) { return std::isalpha(static_cast<unsigned char>(c)) || c == '_'; }

// Jinja reads \r\n and \r as \n and drops one newline at the end.
std::string NormalizeNewlines(std::string_view source) {
  std::string out;
  out.reserve(source.size());
  for (size_t i = 0; i < source.size(); ++i) {
    if (source[i] == '\r' && i + 1 < source.size() && source[i + 1] == '\n') continue;
    out.push_back(source[i] == '\r' ? '\n' : source[i]);
  }
  if (out.ends_with('\n')) out.pop_back();
  return out;
}

class Lexer {
 public:
  explicit Lexer(std::string_view source) : in_(NormalizeNewlines(source)) {}

  absl::StatusOr<std::vector<Token>> Run() {
    while (pos_ < in_.size()) RETURN_IF_ERROR(LexTextAndTag());
    Add(Token::kEnd, "");
    return std::move(tokens_);
  }

 private:
  void Add(Token::Kind kind, std::string text) {
    tokens_.push_back({kind, std::move(text), line_});
  }
  void Advance(size_t bytes) {
    const size_t end = std::min(pos_ + bytes, in_.size());
    line_ += std::count(in_.begin() + pos_, in_.begin() + end, '\n');
    pos_ = end;
  }
  bool At(std::string_view text) const { return in_.compare(pos_, text.size(), text) == 0; }
  void SkipSpace() {
    while (pos_ < in_.size() && IsSpace(in_[pos_])) Advance(1);
  }

  size_t FindTag() const {
    for (size_t at = in_.find('{', pos_); at != in_.npos; at = in_.find('{', at + 1)) {
      const char next = at + 1 < in_.size() ? in_[at + 1] : '\0';
      if (next == '{' || next == '%' || next == '#') return at;
    }
    return in_.npos;
  }

  absl::Status LexTextAndTag() {
    const size_t tag = FindTag();
    std::string text = in_.substr(pos_, tag == in_.npos ? in_.npos : tag - pos_);
    if (tag == in_.npos) {
      Add(Token::kText, text);
      Advance(text.size());
      return absl::OkStatus();
    }
    const char kind = in_[tag + 1];
    const char sign = tag + 2 < in_.size() ? in_[tag + 2] : '\0';
    const size_t text_bytes = text.size();
    if (sign == '-') {
      while (!text.empty() && IsSpace(text.back())) text.pop_back();
    } else if (sign != '+' && kind != '{') {
      StripLineStart(&text);
    }
    if (!text.empty()) Add(Token::kText, text);
    Advance(text_bytes + 2 + (sign == '-' || sign == '+' ? 1 : 0));
    if (kind == '#') return LexComment();
    Add(kind == '{' ? Token::kPrintBegin : Token::kBlockBegin, "");
    return LexTag(kind == '{' ? '}' : '%', kind == '{' ? Token::kPrintEnd : Token::kBlockEnd);
  }

  // lstrip_blocks: blanks between the start of the line and the tag.
  void StripLineStart(std::string* text) const {
    const size_t newline = text->rfind('\n');
    const bool own_line = newline != text->npos || pos_ == 0 || in_[pos_ - 1] == '\n';
    const size_t from = newline == text->npos ? 0 : newline + 1;
    if (own_line && std::all_of(text->begin() + from, text->end(), IsSpace)) text->resize(from);
  }

  absl::Status LexComment() {
    const int opened = line_;
    const size_t end = in_.find("#}", pos_);
    if (end == in_.npos) return ErrorAt(opened, "a comment without #}");
    const char sign = end > pos_ ? in_[end - 1] : '\0';
    Advance(end + 2 - pos_);
    TrimAfter(sign, /*is_block=*/true);
    return absl::OkStatus();
  }

  // After a tag: "-" drops all white space; trim_blocks drops one newline after a block.
  void TrimAfter(char sign, bool is_block) {
    if (sign == '-') {
      SkipSpace();
    } else if (sign != '+' && is_block && At("\n")) {
      Advance(1);
    }
  }

  absl::Status LexTag(char close, Token::Kind end_kind) {
    const int opened = line_;
    std::string brackets;  // a }} inside of them does not end the tag
    const std::string closing = std::string(1, close) + "}";
    const bool is_block = close == '%';
    while (true) {
      SkipSpace();
      if (pos_ >= in_.size()) return ErrorAt(opened, "a tag without its end");
      if (brackets.empty()) {
        char sign = At("-" + closing) ? '-' : is_block && At("+" + closing) ? '+' : '\0';
        if (sign != '\0' || At(closing)) {
          Add(end_kind, "");
          Advance(closing.size() + (sign != '\0' ? 1 : 0));
          TrimAfter(sign, is_block);
          return absl::OkStatus();
        }
      }
      RETURN_IF_ERROR(LexToken(&brackets));
    }
  }

  absl::Status LexToken(std::string* brackets) {
    const char c = in_[pos_];
    if (IsNameStart(c)) {
      size_t end = pos_ + 1;
      while (end < in_.size() && (IsNameStart(in_[end]) || IsDigit(in_[end]))) ++end;
      Add(Token::kName, in_.substr(pos_, end - pos_));
      pos_ = end;
      return absl::OkStatus();
    }
    if (IsDigit(c)) return LexNumber();
    if (c == '"' || c == '\'') return LexString(c);
    for (std::string_view op : {"//", "**", "==", "!=", ">=", "<="}) {
      if (!At(op)) continue;
      Add(Token::kOp, std::string(op));
      pos_ += 2;
      return absl::OkStatus();
    }
    if (std::string_view("+-*/%~<>=()[]{}.,:|;").find(c) == std::string_view::npos) {
      return ErrorAt(line_, absl::StrCat("unexpected '", std::string(1, c), "'"));
    }
    if (c == '(' || c == '[' || c == '{') {
      brackets->push_back(c == '(' ? ')' : c == '[' ? ']' : '}');
    } else if (c == ')' || c == ']' || c == '}') {
      if (brackets->empty() || brackets->back() != c) {
        return ErrorAt(line_, absl::StrCat("unbalanced '", std::string(1, c), "'"));
      }
      brackets->pop_back();
    }
    Add(Token::kOp, std::string(1, c));
    ++pos_;
    return absl::OkStatus();
  }

  absl::Status LexNumber() {
    size_t end = pos_;
    bool is_float = false;
    const auto digits = [&] {
      while (end < in_.size() && (IsDigit(in_[end]) || in_[end] == '_')) ++end;
    };
    digits();
    if (end + 1 < in_.size() && in_[end] == '.' && IsDigit(in_[end + 1])) {
      is_float = true;
      ++end;
      digits();
    }
    if (end < in_.size() && (in_[end] == 'e' || in_[end] == 'E')) {
      size_t exponent = end + 1;
      if (exponent < in_.size() && (in_[exponent] == '+' || in_[exponent] == '-')) ++exponent;
      if (exponent < in_.size() && IsDigit(in_[exponent])) {
        is_float = true;
        end = exponent;
        digits();
      }
    }
    std::string text = in_.substr(pos_, end - pos_);
    std::erase(text, '_');
    Add(is_float ? Token::kFloat : Token::kInt, text);
    pos_ = end;
    return absl::OkStatus();
  }

  absl::Status LexString(char quote) {
    const int opened = line_;
    std::string text;
    for (Advance(1); pos_ < in_.size() && in_[pos_] != quote;) {
      if (in_[pos_] == '\\') {
        RETURN_IF_ERROR(Unescape(&text));
      } else {
        text.push_back(in_[pos_]);
        Advance(1);
      }
    }
    if (pos_ >= in_.size()) return ErrorAt(opened, "a string without its end");
    ++pos_;
    Add(Token::kString, std::move(text));
    return absl::OkStatus();
  }

  // A backslash sequence of a Python string; an unknown one stands for itself.
  absl::Status Unescape(std::string* out) {
    if (pos_ + 1 >= in_.size()) return ErrorAt(line_, "a string without its end");
    const char c = in_[pos_ + 1];
    Advance(2);
    static constexpr std::string_view kFrom = "nrtabfv\\'\"";
    static constexpr std::string_view kTo = "\n\r\t\a\b\f\v\\'\"";
    if (const size_t known = kFrom.find(c); known != kFrom.npos) {
      out->push_back(kTo[known]);
      return absl::OkStatus();
    }
    if (c == '\n') return absl::OkStatus();
    const size_t digits = c == 'x' ? 2 : c == 'u' ? 4 : c == 'U' ? 8 : 0;
    if (digits == 0) {
      out->push_back('\\');
      out->push_back(c);
      return absl::OkStatus();
    }
    const std::string hex = in_.substr(pos_, digits);
    if (hex.size() != digits ||
        !std::all_of(hex.begin(), hex.end(), [](unsigned char h) { return std::isxdigit(h); })) {
      return ErrorAt(line_,
                     absl::StrCat("\\", std::string(1, c), " needs ", digits, " hex digits"));
    }
    AppendUtf8(static_cast<char32_t>(std::stoull(hex, nullptr, 16)), out);
    pos_ += digits;
    return absl::OkStatus();
  }

  std::string in_;
  size_t pos_ = 0;
  int line_ = 1;
  std::vector<Token> tokens_;
};

}  // namespace

absl::StatusOr<std::vector<Token>> Lex(std::string_view source) { return Lexer(source).Run(); }

absl::Status ErrorAt(int line, std::string_view what) {
  return Located(line, absl::InvalidArgumentError(absl::string_view(what.data(), what.size())));
}

absl::Status Located(int line, const absl::Status& status) {
  constexpr absl::string_view kPrefix = "chat template, line ";
  if (status.ok() || absl::StartsWith(status.message(), kPrefix)) return status;
  return absl::Status(status.code(), absl::StrCat(kPrefix, line, ": ", status.message()));
}

}  // namespace switchyard::jinja
