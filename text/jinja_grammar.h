// text/jinja_grammar.h: the recursive-descent parser behind jinja_parser.h. Its statements are in
// jinja_parser.cc, its expressions in jinja_expressions.cc.
#pragma once

#include <algorithm>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "text/jinja_ast.h"
#include "text/jinja_lexer.h"

namespace switchyard::jinja {

constexpr int kNestingMax = 100;  // of blocks, parentheses and the expressions in them

class Parser {
 public:
  explicit Parser(std::vector<Token> tokens) : tokens_(std::move(tokens)) {}

  absl::StatusOr<std::vector<Stmt>> Run() { return ParseBody({}); }

 private:
  const Token& Peek(size_t ahead = 0) const {
    return tokens_[std::min(at_ + ahead, tokens_.size() - 1)];
  }
  Token Next() {
    Token token = Peek();
    if (at_ + 1 < tokens_.size()) ++at_;
    return token;
  }
  bool IsOp(std::string_view op) const { return Peek().kind == Token::kOp && Peek().text == op; }
  bool IsName(std::string_view name) const {
    return Peek().kind == Token::kName && Peek().text == name;
  }
  bool SkipOp(std::string_view op) {
    const bool is = IsOp(op);
    if (is) Next();
    return is;
  }
  bool SkipName(std::string_view name) {
    const bool is = IsName(name);
    if (is) Next();
    return is;
  }
  absl::Status Error(std::string_view what) const { return ErrorAt(Peek().line, what); }
  absl::Status ExpectOp(std::string_view op) {
    if (SkipOp(op)) return absl::OkStatus();
    return Error(absl::StrCat("expected '", std::string(op), "' before '", Peek().text, "'"));
  }
  absl::Status Expect(Token::Kind kind, const char* what) {
    if (Next().kind == kind) return absl::OkStatus();
    return Error(absl::StrCat("expected ", what));
  }
  absl::StatusOr<std::string> ExpectName() {
    if (Peek().kind != Token::kName) return Error("expected a name");
    return Next().text;
  }
  ExprPtr New(Expr::Kind kind, int line) const {
    auto expr = std::make_unique<Expr>();
    expr->kind = kind;
    expr->line = line;
    return expr;
  }
  // Bounds the depth of chains like a.b.c or a + b + c, which need no recursion to parse.
  absl::StatusOr<ExprPtr> Finish(ExprPtr expr) const {
    for (const ExprPtr& kid : expr->kids) {
      if (kid) expr->depth = std::max(expr->depth, kid->depth + 1);
    }
    for (const auto& item : expr->named) {
      expr->depth = std::max(expr->depth, item.second->depth + 1);
    }
    if (expr->depth > kNestingMax) {
      return ErrorAt(expr->line,
                     absl::StrCat("an expression of more than ", kNestingMax, " levels"));
    }
    return expr;
  }
  absl::StatusOr<ExprPtr> Unary(Expr::Kind kind, int line, ExprPtr kid) const {
    ExprPtr expr = New(kind, line);
    expr->kids.push_back(std::move(kid));
    return Finish(std::move(expr));
  }
  absl::StatusOr<ExprPtr> Binary(std::string op, int line, ExprPtr left, ExprPtr right) const {
    ExprPtr expr = New(Expr::kBinary, line);
    expr->name = std::move(op);
    expr->kids.push_back(std::move(left));
    expr->kids.push_back(std::move(right));
    return Finish(std::move(expr));
  }

  // Statements up to a block whose keyword is in `ends`; the keyword is left as the next token.
  absl::StatusOr<std::vector<Stmt>> ParseBody(std::vector<std::string_view> ends);
  absl::StatusOr<Stmt> ParseStatement();
  absl::Status ParseIf(Stmt* stmt);
  absl::Status ParseFor(Stmt* stmt);
  absl::Status ParseSet(Stmt* stmt);
  absl::Status ParseMacro(Stmt* stmt);
  absl::Status ParseWith(Stmt* stmt);
  absl::Status EndBlock(const char* keyword);
  absl::StatusOr<std::vector<std::string>> ParseTargets();

  absl::StatusOr<ExprPtr> ParseTuple();  // an expression, or several with commas
  absl::StatusOr<ExprPtr> ParseExpr();
  absl::StatusOr<ExprPtr> ParseOr();
  absl::StatusOr<ExprPtr> ParseAnd();
  absl::StatusOr<ExprPtr> ParseNot();
  absl::StatusOr<ExprPtr> ParseCompare();
  absl::StatusOr<ExprPtr> ParseSum();
  absl::StatusOr<ExprPtr> ParseConcat();
  absl::StatusOr<ExprPtr> ParseProduct();
  absl::StatusOr<ExprPtr> ParsePower();
  absl::StatusOr<ExprPtr> ParseUnary(bool with_filters);
  absl::StatusOr<ExprPtr> ParsePrimary();
  absl::StatusOr<ExprPtr> ParseNumber();
  absl::StatusOr<ExprPtr> ParseList(std::string_view close);
  absl::StatusOr<ExprPtr> ParseDict();
  absl::StatusOr<ExprPtr> ParsePostfix(ExprPtr expr);
  absl::StatusOr<ExprPtr> ParseSubscript(ExprPtr object);
  absl::StatusOr<ExprPtr> ParseFilters(ExprPtr expr);
  absl::StatusOr<ExprPtr> ParseTest(ExprPtr expr);
  absl::Status ParseArguments(Expr* call);

  std::vector<Token> tokens_;
  size_t at_ = 0;
  int depth_ = 0;  // of recursion over statements and parentheses
};

}  // namespace switchyard::jinja
