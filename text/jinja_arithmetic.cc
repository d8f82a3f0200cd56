#include <cmath>
#include <limits>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "text/jinja_interpreter.h"

namespace switchyard::jinja {
namespace {

absl::StatusOr<Value> IntArithmetic(std::string_view op, int64_t a, int64_t b) {
  int64_t result = 0;
  bool overflow = false;
  if (op == "+") {
    overflow = __builtin_add_overflow(a, b, &result);
  } else if (op == "-") {
    overflow = __builtin_sub_overflow(a, b, &result);
  } else if (op == "*") {
    overflow = __builtin_mul_overflow(a, b, &result);
  } else if (op == "**") {
    if (b < 0) return Value(std::pow(static_cast<double>(a), static_cast<double>(b)));
    result = 1;
    if (a == 0 || a == 1 || a == -1) b = b == 0 ? 0 : 2 - b % 2;  // the rest overflows by 2^64
    for (; b > 0 && !overflow; --b) overflow = __builtin_mul_overflow(result, a, &result);
  } else {
    if (b == 0) return absl::InvalidArgumentError("division by zero");
    if (op == "/") return Value(static_cast<double>(a) / static_cast<double>(b));
    if (b == -1) {
      if (op == "%") return Value(int64_t{0});
      overflow = __builtin_sub_overflow(int64_t{0}, a, &result);
    } else {  // Python rounds down, and the remainder has the divisor's sign
      const bool adjust = a % b != 0 && (a < 0) != (b < 0);
      result = op == "//" ? a / b - adjust : a % b + (adjust ? b : 0);
    }
  }
  if (overflow) return absl::InvalidArgumentError("an integer does not fit 64 bits");
  return Value(result);
}

absl::StatusOr<Value> FloatArithmetic(std::string_view op, double a, double b) {
  if (op == "+") return Value(a + b);
  if (op == "-") return Value(a - b);
  if (op == "*") return Value(a * b);
  if (op == "**") return Value(std::pow(a, b));
  if (b == 0) return absl::InvalidArgumentError("division by zero");
  if (op == "/") return Value(a / b);
  const double floor = std::floor(a / b);
  return op == "//" ? Value(floor) : Value(a - floor * b);
}

// One %s, %r, %d, %i or %f (with a precision), without a width.
absl::StatusOr<std::string> FormatOne(char letter, int precision, const Value& value) {
  if (letter == 's') return value.Str();
  if (letter == 'r') {
    std::string out;
    value.Repr(&out);
    return out;
  }
  if (!value.IsNumber()) {
    return absl::InvalidArgumentError(
        absl::StrCat("%", std::string(1, letter), " of ", value.TypeName()));
  }
  if (letter == 'f') return absl::StrFormat("%.*f", precision, value.ToDouble());
  if (!value.IsFloat()) return absl::StrCat(value.ToInt());
  if (!(std::abs(value.ToDouble()) < 9.2e18)) {
    return absl::InvalidArgumentError(absl::StrCat("%", std::string(1, letter), " of ", value.Str(),
                                                   ": it does not fit 64 bits"));
  }
  return absl::StrCat(static_cast<int64_t>(value.ToDouble()));
}

// text % values. A list that has as many items as there are places stands for Python's tuple.
absl::StatusOr<Value> PercentFormat(std::string_view text, const Value& values) {
  List rest;
  size_t places = 0;
  for (size_t i = 0; i + 1 < text.size(); ++i) {
    if (text[i] == '%') places += text[++i] != '%';
  }
  if (values.AsList() && values.AsList()->size() == places) {
    rest = *values.AsList();
  } else {
    rest.push_back(values);
  }
  std::string out;
  size_t used = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '%') {
      out.push_back(text[i]);
      continue;
    }
    if (text.substr(i, 2) == "%%") {
      out.push_back(text[++i]);
      continue;
    }
    int precision = 6;
    if (text.substr(i + 1, 1) == "." && i + 3 < text.size() &&
        absl::ascii_isdigit(static_cast<unsigned char>(text[i + 2]))) {
      precision = text[i + 2] - '0';
      i += 2;
    }
    const char letter = i + 1 < text.size() ? text[++i] : '%';
    if (std::string_view("srdif").find(letter) == std::string_view::npos) {
      return absl::InvalidArgumentError(
          absl::StrCat("format %", std::string(1, letter), " is not supported"));
    }
    if (used == rest.size()) return absl::InvalidArgumentError("not enough arguments for format");
    auto one = FormatOne(letter, precision, rest[used++]);
    if (!one.ok()) return one.status();
    out += *one;
    if (out.size() > kBytesMax) return TooLong();
  }
  if (used < rest.size()) {
    return absl::InvalidArgumentError("not all arguments are used by the format");
  }
  return Value(std::move(out));
}

}  // namespace

absl::StatusOr<Value> Arithmetic(std::string_view op, const Value& left, const Value& right) {
  if (left.IsNumber() && right.IsNumber()) {
    if (left.IsFloat() || right.IsFloat()) {
      return FloatArithmetic(op, left.ToDouble(), right.ToDouble());
    }
    return IntArithmetic(op, left.ToInt(), right.ToInt());
  }
  const auto *a = left.AsString(), *b = right.AsString();
  if (op == "+" && a && b) {
    if (a->size() + b->size() > kBytesMax) return TooLong();
    return Value(*a + *b);
  }
  if (op == "%" && a) return PercentFormat(*a, right);
  if (op == "*" && (a || b) && (left.IsInt() || right.IsInt())) {
    const std::string& text = a ? *a : *b;
    const int64_t times = std::max(int64_t{0}, a ? right.ToInt() : left.ToInt());
    if (text.empty() || times == 0) return Value("");
    if (static_cast<uint64_t>(times) > kBytesMax / text.size()) return TooLong();
    std::string out;
    for (int64_t i = 0; i < times; ++i) out += text;
    return Value(std::move(out));
  }
  if (op == "*" && (left.AsList() || right.AsList()) && (left.IsInt() || right.IsInt())) {
    const List& items = left.AsList() ? *left.AsList() : *right.AsList();
    const int64_t times = std::max(int64_t{0}, left.AsList() ? right.ToInt() : left.ToInt());
    const size_t weight = (left.AsList() ? left : right).weight();
    if (static_cast<uint64_t>(times) > kBytesMax / weight) return TooLong();
    List out;
    for (int64_t i = 0; i < times; ++i) out.insert(out.end(), items.begin(), items.end());
    return Value(std::move(out));
  }
  if (op == "+" && left.AsList() && right.AsList()) {
    if (left.weight() + right.weight() > kBytesMax) return TooLong();
    List all = *left.AsList();
    all.insert(all.end(), right.AsList()->begin(), right.AsList()->end());
    return Value(std::move(all));
  }
  for (const Value* side : {&left, &right}) {
    if (const Undefined* u = side->AsUndefined()) {
      return absl::InvalidArgumentError(absl::StrCat("'", u->name, "' is undefined"));
    }
  }
  return absl::InvalidArgumentError(absl::StrCat("'", absl::string_view(op.data(), op.size()),
                                                 "' between ", left.TypeName(), " and ",
                                                 right.TypeName()));
}

}  // namespace switchyard::jinja
