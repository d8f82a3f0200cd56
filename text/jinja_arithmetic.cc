#include <cmath>
#include <limits>

#include "absl/strings/str_cat.h"
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
  if (op == "*" && (a || b) && (left.IsInt() || right.IsInt())) {
    const std::string& text = a ? *a : *b;
    const int64_t times = std::max(int64_t{0}, a ? right.ToInt() : left.ToInt());
    if (text.empty() || times == 0) return Value("");
    if (static_cast<uint64_t>(times) > kBytesMax / text.size()) return TooLong();
    std::string out;
    for (int64_t i = 0; i < times; ++i) out += text;
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
