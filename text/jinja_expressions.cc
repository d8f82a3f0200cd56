#include <charconv>

#include "common/status_macros.h"
#include "text/jinja_grammar.h"

namespace switchyard::jinja {

// Loosest binding first.

absl::StatusOr<ExprPtr> Parser::ParseTuple() {
  const int line = Peek().line;
  ASSIGN_OR_RETURN(ExprPtr first, ParseExpr());
  if (!IsOp(",")) return first;
  ExprPtr tuple = New(Expr::kList, line);
  tuple->kids.push_back(std::move(first));
  while (SkipOp(",")) {
    if (Peek().kind == Token::kBlockEnd || Peek().kind == Token::kPrintEnd || IsOp(")")) break;
    ASSIGN_OR_RETURN(ExprPtr item, ParseExpr());
    tuple->kids.push_back(std::move(item));
  }
  return Finish(std::move(tuple));
}

absl::StatusOr<ExprPtr> Parser::ParseExpr() {
  if (++depth_ > kNestingMax) {
    return Error(absl::StrCat("an expression of more than ", kNestingMax, " levels"));
  }
  ASSIGN_OR_RETURN(ExprPtr value, ParseOr());
  while (IsName("if")) {
    ExprPtr choice = New(Expr::kIfElse, Next().line);
    ASSIGN_OR_RETURN(ExprPtr condition, ParseOr());
    ExprPtr otherwise;
    if (SkipName("else")) {
      ASSIGN_OR_RETURN(otherwise, ParseExpr());
    }
    choice->kids.push_back(std::move(condition));
    choice->kids.push_back(std::move(value));
    choice->kids.push_back(std::move(otherwise));
    ASSIGN_OR_RETURN(value, Finish(std::move(choice)));
  }
  --depth_;
  return value;
}

absl::StatusOr<ExprPtr> Parser::ParseOr() {
  ASSIGN_OR_RETURN(ExprPtr left, ParseAnd());
  while (IsName("or")) {
    const int line = Next().line;
    ASSIGN_OR_RETURN(ExprPtr right, ParseAnd());
    ASSIGN_OR_RETURN(left, Binary("or", line, std::move(left), std::move(right)));
  }
  return left;
}

absl::StatusOr<ExprPtr> Parser::ParseAnd() {
  ASSIGN_OR_RETURN(ExprPtr left, ParseNot());
  while (IsName("and")) {
    const int line = Next().line;
    ASSIGN_OR_RETURN(ExprPtr right, ParseNot());
    ASSIGN_OR_RETURN(left, Binary("and", line, std::move(left), std::move(right)));
  }
  return left;
}

absl::StatusOr<ExprPtr> Parser::ParseNot() {
  int negations = 0;
  const int line = Peek().line;
  while (SkipName("not")) ++negations;
  ASSIGN_OR_RETURN(ExprPtr expr, ParseCompare());
  for (; negations > 0; --negations) {
    ASSIGN_OR_RETURN(expr, Unary(Expr::kNot, line, std::move(expr)));
  }
  return expr;
}

absl::StatusOr<ExprPtr> Parser::ParseCompare() {
  const int line = Peek().line;
  ASSIGN_OR_RETURN(ExprPtr left, ParseSum());
  ExprPtr compare = New(Expr::kCompare, line);
  while (true) {
    std::string op;
    for (const char* known : {"==", "!=", "<=", ">=", "<", ">"}) {
      if (IsOp(known)) op = known;
    }
    if (IsName("in")) op = "in";
    if (IsName("not") && Peek(1).kind == Token::kName && Peek(1).text == "in") {
      Next();
      op = "not in";
    }
    if (op.empty()) break;
    Next();
    ASSIGN_OR_RETURN(ExprPtr right, ParseSum());
    compare->ops.push_back(std::move(op));
    compare->kids.push_back(std::move(right));
  }
  if (compare->ops.empty()) return left;
  compare->kids.insert(compare->kids.begin(), std::move(left));
  return Finish(std::move(compare));
}

absl::StatusOr<ExprPtr> Parser::ParseSum() {
  ASSIGN_OR_RETURN(ExprPtr left, ParseConcat());
  while (IsOp("+") || IsOp("-")) {
    const Token op = Next();
    ASSIGN_OR_RETURN(ExprPtr right, ParseConcat());
    ASSIGN_OR_RETURN(left, Binary(op.text, op.line, std::move(left), std::move(right)));
  }
  return left;
}

absl::StatusOr<ExprPtr> Parser::ParseConcat() {
  const int line = Peek().line;
  ASSIGN_OR_RETURN(ExprPtr first, ParseProduct());
  if (!IsOp("~")) return first;
  ExprPtr concat = New(Expr::kConcat, line);
  concat->kids.push_back(std::move(first));
  while (SkipOp("~")) {
    ASSIGN_OR_RETURN(ExprPtr next, ParseProduct());
    concat->kids.push_back(std::move(next));
  }
  return Finish(std::move(concat));
}

absl::StatusOr<ExprPtr> Parser::ParseProduct() {
  ASSIGN_OR_RETURN(ExprPtr left, ParsePower());
  while (IsOp("*") || IsOp("/") || IsOp("//") || IsOp("%")) {
    const Token op = Next();
    ASSIGN_OR_RETURN(ExprPtr right, ParsePower());
    ASSIGN_OR_RETURN(left, Binary(op.text, op.line, std::move(left), std::move(right)));
  }
  return left;
}

absl::StatusOr<ExprPtr> Parser::ParsePower() {
  ASSIGN_OR_RETURN(ExprPtr left, ParseUnary(/*with_filters=*/true));
  while (IsOp("**")) {
    const Token op = Next();
    ASSIGN_OR_RETURN(ExprPtr right, ParseUnary(/*with_filters=*/true));
    ASSIGN_OR_RETURN(left, Binary(op.text, op.line, std::move(left), std::move(right)));
  }
  return left;
}

absl::StatusOr<ExprPtr> Parser::ParseUnary(bool with_filters) {
  ExprPtr expr;
  if (IsOp("-") || IsOp("+")) {
    const Token sign = Next();
    if (++depth_ > kNestingMax) return Error("too many signs");
    ASSIGN_OR_RETURN(expr, ParseUnary(/*with_filters=*/false));
    --depth_;
    const Expr::Kind kind = sign.text == "-" ? Expr::kNegate : Expr::kPlus;
    ASSIGN_OR_RETURN(expr, Unary(kind, sign.line, std::move(expr)));
  } else {
    ASSIGN_OR_RETURN(expr, ParsePrimary());
  }
  ASSIGN_OR_RETURN(expr, ParsePostfix(std::move(expr)));
  return with_filters ? ParseFilters(std::move(expr)) : std::move(expr);
}

absl::StatusOr<ExprPtr> Parser::ParsePrimary() {
  const Token& token = Peek();
  if (token.kind == Token::kInt || token.kind == Token::kFloat) return ParseNumber();
  if (token.kind == Token::kString) {
    ExprPtr literal = New(Expr::kLiteral, token.line);
    std::string text;
    while (Peek().kind == Token::kString) text += Next().text;
    literal->value = Value(std::move(text));
    return literal;
  }
  if (token.kind == Token::kName) {
    ExprPtr expr = New(Expr::kName, token.line);
    expr->name = Next().text;
    const std::string& n = expr->name;
    const bool is_true = n == "true" || n == "True", is_false = n == "false" || n == "False";
    if (is_true || is_false || n == "none" || n == "None") {
      expr->kind = Expr::kLiteral;
      expr->value = is_true || is_false ? Value(is_true) : Value(None{});
    }
    return expr;
  }
  if (SkipOp("(")) {
    if (IsOp(")")) return ParseList(")");
    ASSIGN_OR_RETURN(ExprPtr inner, ParseTuple());
    RETURN_IF_ERROR(ExpectOp(")"));
    return inner;
  }
  if (SkipOp("[")) return ParseList("]");
  if (SkipOp("{")) return ParseDict();
  return Error(absl::StrCat("expected a value before '", token.text, "'"));
}

absl::StatusOr<ExprPtr> Parser::ParseNumber() {
  const Token token = Next();
  ExprPtr literal = New(Expr::kLiteral, token.line);
  const char *begin = token.text.data(), *end = begin + token.text.size();
  std::from_chars_result result;
  if (token.kind == Token::kInt) {
    int64_t value = 0;
    result = std::from_chars(begin, end, value);
    literal->value = Value(value);
  } else {
    double value = 0;
    result = std::from_chars(begin, end, value);
    literal->value = Value(value);
  }
  if (result.ec != std::errc()) return Error(absl::StrCat("number ", token.text, " is too large"));
  return literal;
}

absl::StatusOr<ExprPtr> Parser::ParseList(std::string_view close) {
  ExprPtr list = New(Expr::kList, Peek().line);
  while (!SkipOp(close)) {
    if (!list->kids.empty()) {
      RETURN_IF_ERROR(ExpectOp(","));
      if (SkipOp(close)) break;
    }
    ASSIGN_OR_RETURN(ExprPtr item, ParseExpr());
    list->kids.push_back(std::move(item));
  }
  return Finish(std::move(list));
}

absl::StatusOr<ExprPtr> Parser::ParseDict() {
  ExprPtr dict = New(Expr::kDict, Peek().line);
  while (!SkipOp("}")) {
    if (!dict->kids.empty()) {
      RETURN_IF_ERROR(ExpectOp(","));
      if (SkipOp("}")) break;
    }
    ASSIGN_OR_RETURN(ExprPtr key, ParseExpr());
    RETURN_IF_ERROR(ExpectOp(":"));
    ASSIGN_OR_RETURN(ExprPtr value, ParseExpr());
    dict->kids.push_back(std::move(key));
    dict->kids.push_back(std::move(value));
  }
  return Finish(std::move(dict));
}

absl::StatusOr<ExprPtr> Parser::ParsePostfix(ExprPtr expr) {
  while (true) {
    const int line = Peek().line;
    if (IsOp(".") && Peek(1).kind == Token::kName) {
      Next();
      ExprPtr attribute = New(Expr::kAttribute, line);
      attribute->name = Next().text;
      attribute->kids.push_back(std::move(expr));
      ASSIGN_OR_RETURN(expr, Finish(std::move(attribute)));
    } else if (SkipOp("[")) {
      ASSIGN_OR_RETURN(expr, ParseSubscript(std::move(expr)));
    } else if (IsOp("(")) {
      ExprPtr call = New(Expr::kCall, line);
      call->kids.push_back(std::move(expr));
      RETURN_IF_ERROR(ParseArguments(call.get()));
      ASSIGN_OR_RETURN(expr, Finish(std::move(call)));
    } else {
      return expr;
    }
  }
}

absl::StatusOr<ExprPtr> Parser::ParseSubscript(ExprPtr object) {
  ExprPtr expr = New(Expr::kIndex, Peek().line);
  expr->kids.push_back(std::move(object));
  while (!SkipOp("]")) {
    if (SkipOp(":")) {
      if (expr->kind == Expr::kIndex) {
        expr->kind = Expr::kSlice;
        if (expr->kids.size() == 1) expr->kids.push_back(nullptr);
      }
      if (expr->kids.size() == 4) return Error("a slice has at most three parts");
      if (IsOp(":") || IsOp("]")) {
        expr->kids.push_back(nullptr);
        continue;
      }
    } else if (expr->kids.size() > 1) {
      return Error("expected ':' or ']'");
    }
    ASSIGN_OR_RETURN(ExprPtr part, ParseExpr());
    expr->kids.push_back(std::move(part));
  }
  if (expr->kids.size() < 2) return Error("an empty subscript");
  if (expr->kind == Expr::kSlice) expr->kids.resize(4);
  return Finish(std::move(expr));
}

absl::StatusOr<ExprPtr> Parser::ParseFilters(ExprPtr expr) {
  while (true) {
    if (IsOp("|")) {
      ExprPtr filter = New(Expr::kFilter, Next().line);
      ASSIGN_OR_RETURN(filter->name, ExpectName());
      filter->kids.push_back(std::move(expr));
      if (IsOp("(")) RETURN_IF_ERROR(ParseArguments(filter.get()));
      ASSIGN_OR_RETURN(expr, Finish(std::move(filter)));
    } else if (IsName("is")) {
      ASSIGN_OR_RETURN(expr, ParseTest(std::move(expr)));
    } else if (IsOp("(") || IsOp("[") || (IsOp(".") && Peek(1).kind == Token::kName)) {
      ASSIGN_OR_RETURN(expr, ParsePostfix(std::move(expr)));
    } else {
      return expr;
    }
  }
}

absl::StatusOr<ExprPtr> Parser::ParseTest(ExprPtr expr) {
  const int line = Next().line;
  const bool negated = SkipName("not");
  ExprPtr test = New(Expr::kTest, line);
  ASSIGN_OR_RETURN(test->name, ExpectName());
  test->kids.push_back(std::move(expr));
  const Token& next = Peek();
  const bool is_value = next.kind == Token::kString || next.kind == Token::kInt ||
                        next.kind == Token::kFloat || IsOp("[") || IsOp("{");
  const bool is_keyword = IsName("else") || IsName("or") || IsName("and") || IsName("is") ||
                          IsName("if") || IsName("in") || IsName("not");
  if (IsOp("(")) {
    RETURN_IF_ERROR(ParseArguments(test.get()));
  } else if (is_value || (next.kind == Token::kName && !is_keyword)) {
    ASSIGN_OR_RETURN(ExprPtr argument, ParsePrimary());
    ASSIGN_OR_RETURN(argument, ParsePostfix(std::move(argument)));
    test->kids.push_back(std::move(argument));
  }
  ASSIGN_OR_RETURN(expr, Finish(std::move(test)));
  return negated ? Unary(Expr::kNot, line, std::move(expr)) : std::move(expr);
}

absl::Status Parser::ParseArguments(Expr* call) {
  RETURN_IF_ERROR(ExpectOp("("));
  for (bool first = true; !SkipOp(")"); first = false) {
    if (!first) {
      RETURN_IF_ERROR(ExpectOp(","));
      if (SkipOp(")")) break;
    }
    const bool is_named =
        Peek().kind == Token::kName && Peek(1).kind == Token::kOp && Peek(1).text == "=";
    if (is_named) {
      std::string name = Next().text;
      Next();
      ASSIGN_OR_RETURN(ExprPtr value, ParseExpr());
      call->named.emplace_back(std::move(name), std::move(value));
    } else {
      ASSIGN_OR_RETURN(ExprPtr value, ParseExpr());
      call->kids.push_back(std::move(value));
    }
  }
  return absl::OkStatus();
}

}  // namespace switchyard::jinja
