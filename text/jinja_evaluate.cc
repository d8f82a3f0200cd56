#include <map>
#include <string_view>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "text/jinja_interpreter.h"
#include "text/jinja_lexer.h"

namespace switchyard::jinja {
namespace {

constexpr size_t kDateFormatBytesMax = 256;
constexpr size_t kRangeMax = 100'000;

absl::Status UndefinedError(const Undefined& u) {
  return absl::InvalidArgumentError(absl::StrCat("'", u.name, "' is undefined"));
}

}  // namespace

absl::StatusOr<Value> Interpreter::Eval(const Expr& expr) {
  if (++depth_ > kLevelsMax) {
    return absl::ResourceExhaustedError(absl::StrCat("more than ", kLevelsMax, " levels"));
  }
  RETURN_IF_ERROR(Charge(1));
  absl::StatusOr<Value> value = EvalKind(expr);
  --depth_;
  if (!value.ok()) return Located(expr.line, value.status());
  return value;
}

absl::StatusOr<Value> Interpreter::EvalKind(const Expr& expr) {
  absl::StatusOr<Value> made = Value();
  switch (expr.kind) {
    case Expr::kLiteral:
      return expr.value;
    case Expr::kName:
      return Lookup(expr.name);
    case Expr::kAttribute:
      return EvalAttribute(expr);
    case Expr::kIndex:
      return EvalIndex(expr);
    case Expr::kTest: {
      ASSIGN_OR_RETURN(const Value in, Eval(*expr.kids[0]));
      ASSIGN_OR_RETURN(const Arguments args, EvalArguments(expr));
      RETURN_IF_ERROR(ChargeReading(in, args));
      ASSIGN_OR_RETURN(const bool is, ApplyTest(expr.name, in, args));
      return Value(is);
    }
    case Expr::kNot: {
      ASSIGN_OR_RETURN(const Value value, Eval(*expr.kids[0]));
      return Value(!value.Truthy());
    }
    case Expr::kNegate:
    case Expr::kPlus: {
      ASSIGN_OR_RETURN(const Value value, Eval(*expr.kids[0]));
      return Arithmetic(expr.kind == Expr::kNegate ? "-" : "+", Value(int64_t{0}), value);
    }
    case Expr::kCompare:
      return EvalCompare(expr);
    case Expr::kIfElse: {
      ASSIGN_OR_RETURN(const Value condition, Eval(*expr.kids[0]));
      if (condition.Truthy()) return Eval(*expr.kids[1]);
      return expr.kids[2] ? Eval(*expr.kids[2]) : Value();
    }
    case Expr::kFilter: {
      ASSIGN_OR_RETURN(const Value in, Eval(*expr.kids[0]));
      ASSIGN_OR_RETURN(const Arguments args, EvalArguments(expr));
      RETURN_IF_ERROR(ChargeReading(in, args));
      made = ApplyFilter(expr.name, in, args);
      break;
    }
    case Expr::kList:
    case Expr::kDict:
      made = EvalContainer(expr);
      break;
    case Expr::kSlice:
      made = EvalSlice(expr);
      break;
    case Expr::kCall:
      made = EvalCall(expr);
      break;
    case Expr::kBinary:
      made = EvalBinary(expr);
      break;
    case Expr::kConcat:
      made = EvalConcat(expr);
      break;
  }
  if (!made.ok()) return made;
  // Whatever makes values comes by here: this is what bounds them.
  if (made->weight() > kBytesMax) return TooLong();
  if (made->depth() > Value::kDepthMax) {
    return absl::ResourceExhaustedError(
        absl::StrCat("a value of more than ", Value::kDepthMax, " levels"));
  }
  RETURN_IF_ERROR(Charge(made->weight() / kBytesPerStep));
  return made;
}

absl::Status Interpreter::ChargeReading(const Value& in, const Arguments& args) {
  const size_t items = in.AsList() ? in.AsList()->size() : 1;
  size_t weight = in.weight();
  for (const Value& value : args.positional) weight += items * value.weight();
  for (const auto& [name, value] : args.named) weight += items * value.weight();
  return Charge(weight / kBytesPerStep);
}

absl::StatusOr<Value> Interpreter::EvalAttribute(const Expr& expr) {
  ASSIGN_OR_RETURN(Value object, Eval(*expr.kids[0]));
  if (const Undefined* u = object.AsUndefined()) return UndefinedError(*u);
  if (HasMethod(object, expr.name)) {
    return Value(Builtin{expr.name, std::make_shared<const Value>(std::move(object))});
  }
  return GetItem(object, Value(expr.name));
}

absl::StatusOr<Value> Interpreter::EvalIndex(const Expr& expr) {
  ASSIGN_OR_RETURN(const Value object, Eval(*expr.kids[0]));
  ASSIGN_OR_RETURN(const Value key, Eval(*expr.kids[1]));
  if (const Undefined* u = object.AsUndefined()) return UndefinedError(*u);
  if (object.AsString()) RETURN_IF_ERROR(Charge(object.weight() / kBytesPerStep));
  return GetItem(object, key);
}

absl::StatusOr<Value> Interpreter::EvalSlice(const Expr& expr) {
  ASSIGN_OR_RETURN(const Value object, Eval(*expr.kids[0]));
  Value bounds[3];
  const Value* given[3] = {};
  for (int i = 0; i < 3; ++i) {
    if (!expr.kids[i + 1]) continue;
    ASSIGN_OR_RETURN(bounds[i], Eval(*expr.kids[i + 1]));
    given[i] = &bounds[i];
  }
  RETURN_IF_ERROR(Charge(object.weight() / kBytesPerStep));
  return Slice(object, given[0], given[1], given[2]);
}

absl::StatusOr<Value> Interpreter::EvalContainer(const Expr& expr) {
  List items;
  for (const ExprPtr& kid : expr.kids) {
    ASSIGN_OR_RETURN(Value value, Eval(*kid));
    items.push_back(std::move(value));
  }
  if (expr.kind == Expr::kList) return Value(std::move(items));
  Dict dict;
  std::map<std::string_view, size_t> places;
  for (size_t i = 0; i < items.size(); i += 2) {
    if (!items[i].AsString()) {
      return absl::InvalidArgumentError(
          absl::StrCat("a dict key is ", items[i].TypeName(), "; only strings are supported"));
    }
    const auto [at, is_new] = places.emplace(*items[i].AsString(), dict.size());
    if (is_new) {
      dict.emplace_back(at->first, items[i + 1]);
    } else {
      dict[at->second].second = items[i + 1];  // the last one counts
    }
  }
  return Value(std::move(dict));
}

absl::StatusOr<Value> Interpreter::EvalBinary(const Expr& expr) {
  ASSIGN_OR_RETURN(Value left, Eval(*expr.kids[0]));
  const bool is_and = expr.name == "and", is_or = expr.name == "or";
  if ((is_and && !left.Truthy()) || (is_or && left.Truthy())) return left;
  ASSIGN_OR_RETURN(Value right, Eval(*expr.kids[1]));
  if (is_and || is_or) return right;
  return Arithmetic(expr.name, left, right);
}

absl::StatusOr<Value> Interpreter::EvalConcat(const Expr& expr) {
  std::string text;
  for (const ExprPtr& kid : expr.kids) {
    ASSIGN_OR_RETURN(const Value value, Eval(*kid));
    RETURN_IF_ERROR(Print(value.Str(), &text));
  }
  return Value(std::move(text));
}

absl::StatusOr<Value> Interpreter::EvalCompare(const Expr& expr) {
  ASSIGN_OR_RETURN(Value left, Eval(*expr.kids[0]));
  for (size_t i = 0; i < expr.ops.size(); ++i) {
    ASSIGN_OR_RETURN(Value right, Eval(*expr.kids[i + 1]));
    RETURN_IF_ERROR(Charge(std::min(left.weight(), right.weight()) / kBytesPerStep));
    const std::string& op = expr.ops[i];
    absl::StatusOr<bool> holds = false;
    if (op == "==" || op == "!=") {
      holds = Equal(left, right) == (op == "==");
    } else if (op == "in" || op == "not in") {
      RETURN_IF_ERROR(Charge(right.weight() / kBytesPerStep));
      holds = Contains(right, left);
      if (holds.ok() && op == "not in") holds = !*holds;
    } else if (op == "<" || op == ">=") {
      holds = Less(left, right);
      if (holds.ok() && op == ">=") holds = !*holds;
    } else {
      holds = Less(right, left);
      if (holds.ok() && op == "<=") holds = !*holds;
    }
    if (!holds.ok()) return holds.status();
    if (!*holds) return Value(false);
    left = std::move(right);
  }
  return Value(true);
}

absl::StatusOr<Arguments> Interpreter::EvalArguments(const Expr& expr) {
  Arguments args;
  for (size_t i = 1; i < expr.kids.size(); ++i) {
    ASSIGN_OR_RETURN(Value value, Eval(*expr.kids[i]));
    args.positional.push_back(std::move(value));
  }
  for (const auto& [name, kid] : expr.named) {
    ASSIGN_OR_RETURN(Value value, Eval(*kid));
    args.named.emplace_back(name, std::move(value));
  }
  return args;
}

absl::StatusOr<Value> Interpreter::EvalCall(const Expr& expr) {
  ASSIGN_OR_RETURN(const Value callee, Eval(*expr.kids[0]));
  ASSIGN_OR_RETURN(const Arguments args, EvalArguments(expr));
  if (const Macro* macro = callee.AsMacro()) return CallMacro(*macro->definition, args);
  if (const Builtin* builtin = callee.AsBuiltin()) {
    if (!builtin->self) return CallFunction(builtin->name, args);
    if (builtin->name.starts_with("loop.")) {
      return CallLoopMethod(builtin->name, *builtin->self, args);
    }
    RETURN_IF_ERROR(Charge(builtin->self->weight() / kBytesPerStep));
    return CallMethod(*builtin->self, builtin->name, args);
  }
  if (const Undefined* u = callee.AsUndefined()) return UndefinedError(*u);
  return absl::InvalidArgumentError(absl::StrCat(callee.TypeName(), " cannot be called"));
}

absl::StatusOr<Value> Interpreter::CallFunction(const std::string& name, const Arguments& args) {
  if (name == "raise_exception") {
    const Value* message = args.Get(0, "message");
    return absl::InvalidArgumentError(message ? message->Str() : "raise_exception");
  }
  if (name == "strftime_now") {
    const Value* format = args.Get(0, "format");
    if (!format || !format->AsString() || format->AsString()->size() > kDateFormatBytesMax) {
      return absl::InvalidArgumentError("strftime_now takes a short format");
    }
    return Value(absl::FormatTime(*format->AsString(), now_, absl::LocalTimeZone()));
  }
  if (name == "dict") return Value(Dict(args.named.begin(), args.named.end()));
  if (name == "namespace") {
    auto space = std::make_shared<Namespace>();
    for (const auto& [field, value] : args.named) {
      if (value.depth() >= Value::kDepthMax) {
        return absl::InvalidArgumentError("a namespace cannot hold a namespace or 200 levels");
      }
      space->fields[field] = value;
    }
    return Value(std::move(space));
  }
  int64_t bounds[3] = {0, 0, 1};  // range(stop), range(start, stop), range(start, stop, step)
  const size_t count = args.positional.size();
  for (size_t i = 0; i < count && i < 3; ++i) {
    const Value& v = args.positional[i];
    if (!v.IsInt() || v.ToInt() > INT32_MAX || v.ToInt() < INT32_MIN) {
      return absl::InvalidArgumentError("a bound of range is not a 32-bit integer");
    }
    bounds[count == 1 ? 1 : i] = v.ToInt();
  }
  if (count < 1 || count > 3 || bounds[2] == 0) {
    return absl::InvalidArgumentError("range takes one to three integers, and no step of 0");
  }
  List out;
  for (int64_t i = bounds[0]; bounds[2] > 0 ? i < bounds[1] : i > bounds[1]; i += bounds[2]) {
    if (out.size() == kRangeMax) {
      return absl::ResourceExhaustedError(absl::StrCat("range of more than ", kRangeMax));
    }
    out.emplace_back(i);
  }
  return Value(std::move(out));
}

absl::StatusOr<Value> Interpreter::CallMacro(const Stmt& macro, const Arguments& args) {
  if (args.positional.size() > macro.targets.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("macro '", macro.name, "' takes ", macro.targets.size(), " arguments"));
  }
  const size_t caller_frame = frame_;
  frame_ = scopes_.size();
  scopes_.emplace_back();
  absl::Status status;
  for (size_t i = 0; i < macro.targets.size() && status.ok(); ++i) {
    const Value* given = args.Get(i, macro.targets[i]);
    absl::StatusOr<Value> value = Value(Undefined{macro.targets[i]});
    if (given != nullptr) {
      value = *given;
    } else if (macro.defaults[i]) {
      value = Eval(*macro.defaults[i]);
    }
    status = value.status();
    if (status.ok()) scopes_.back()[macro.targets[i]] = *std::move(value);
  }
  std::string text;
  if (status.ok()) status = Exec(macro.body, &text).status();
  scopes_.resize(frame_);
  frame_ = caller_frame;
  RETURN_IF_ERROR(status);
  return Value(std::move(text));
}

}  // namespace switchyard::jinja
