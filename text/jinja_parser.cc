#include "text/jinja_parser.h"

#include "common/status_macros.h"
#include "text/jinja_grammar.h"

namespace switchyard::jinja {

absl::StatusOr<std::vector<Stmt>> Parser::ParseBody(std::vector<std::string_view> ends) {
  if (++depth_ > kNestingMax)
    return Error(absl::StrCat("more than ", kNestingMax, " nested blocks"));
  std::vector<Stmt> body;
  while (Peek().kind != Token::kEnd) {
    const Token token = Next();
    Stmt stmt;
    stmt.line = token.line;
    if (token.kind == Token::kText) {
      stmt.kind = Stmt::kText;
      stmt.name = token.text;
    } else if (token.kind == Token::kPrintBegin) {
      stmt.kind = Stmt::kPrint;
      ASSIGN_OR_RETURN(stmt.expr, ParseTuple());
      RETURN_IF_ERROR(Expect(Token::kPrintEnd, "'}}'"));
    } else {  // kBlockBegin
      if (Peek().kind != Token::kName) return Error("a block without a keyword");
      if (std::find(ends.begin(), ends.end(), Peek().text) != ends.end()) {
        --depth_;
        return body;
      }
      ASSIGN_OR_RETURN(stmt, ParseStatement());
    }
    body.push_back(std::move(stmt));
  }
  if (!ends.empty()) {
    return Error(
        absl::StrCat("the template ends where a block must end with ", std::string(ends.back())));
  }
  --depth_;
  return body;
}

absl::Status Parser::EndBlock(const char* keyword) {
  if (!SkipName(keyword)) return Error(absl::StrCat("expected ", keyword));
  return Expect(Token::kBlockEnd, "'%}'");
}

absl::StatusOr<Stmt> Parser::ParseStatement() {
  Stmt stmt;
  stmt.line = Peek().line;
  const std::string keyword = Next().text;
  absl::Status status;
  if (keyword == "if") {
    status = ParseIf(&stmt);
  } else if (keyword == "for") {
    status = ParseFor(&stmt);
  } else if (keyword == "set") {
    status = ParseSet(&stmt);
  } else if (keyword == "macro") {
    status = ParseMacro(&stmt);
  } else if (keyword == "break" || keyword == "continue") {
    stmt.kind = keyword == "break" ? Stmt::kBreak : Stmt::kContinue;
    status = Expect(Token::kBlockEnd, "'%}'");
  } else if (keyword == "with") {
    status = ParseWith(&stmt);
  } else if (keyword == "generation") {  // transformers' mark of what the assistant says
    stmt.kind = Stmt::kBlock;
    RETURN_IF_ERROR(Expect(Token::kBlockEnd, "'%}'"));
    ASSIGN_OR_RETURN(stmt.body, ParseBody({"endgeneration"}));
    status = EndBlock("endgeneration");
  } else {
    status = ErrorAt(stmt.line, absl::StrCat("statement '", keyword, "' is not supported"));
  }
  if (!status.ok()) return status;
  return stmt;
}

absl::Status Parser::ParseWith(Stmt* stmt) {
  stmt->kind = Stmt::kWith;
  while (Peek().kind != Token::kBlockEnd) {
    if (!stmt->targets.empty()) RETURN_IF_ERROR(ExpectOp(","));
    ASSIGN_OR_RETURN(std::string name, ExpectName());
    stmt->targets.push_back(std::move(name));
    RETURN_IF_ERROR(ExpectOp("="));
    ASSIGN_OR_RETURN(ExprPtr value, ParseExpr());
    stmt->defaults.push_back(std::move(value));
  }
  RETURN_IF_ERROR(Expect(Token::kBlockEnd, "'%}'"));
  ASSIGN_OR_RETURN(stmt->body, ParseBody({"endwith"}));
  return EndBlock("endwith");
}

absl::Status Parser::ParseIf(Stmt* stmt) {
  stmt->kind = Stmt::kIf;
  do {
    Stmt::Branch branch;
    ASSIGN_OR_RETURN(branch.condition, ParseTuple());
    RETURN_IF_ERROR(Expect(Token::kBlockEnd, "'%}'"));
    ASSIGN_OR_RETURN(branch.body, ParseBody({"elif", "else", "endif"}));
    stmt->branches.push_back(std::move(branch));
  } while (SkipName("elif"));
  if (SkipName("else")) {
    RETURN_IF_ERROR(Expect(Token::kBlockEnd, "'%}'"));
    ASSIGN_OR_RETURN(stmt->else_body, ParseBody({"endif"}));
  }
  return EndBlock("endif");
}

absl::StatusOr<std::vector<std::string>> Parser::ParseTargets() {
  std::vector<std::string> targets;
  const bool parenthesis = SkipOp("(");
  do {
    ASSIGN_OR_RETURN(std::string name, ExpectName());
    targets.push_back(std::move(name));
  } while (SkipOp(","));
  if (parenthesis) RETURN_IF_ERROR(ExpectOp(")"));
  return targets;
}

absl::Status Parser::ParseFor(Stmt* stmt) {
  stmt->kind = Stmt::kFor;
  ASSIGN_OR_RETURN(stmt->targets, ParseTargets());
  if (!SkipName("in")) return Error("expected 'in'");
  ASSIGN_OR_RETURN(stmt->expr, ParseOr());  // no ternary here: its "if" is the loop's
  if (SkipName("if")) {
    ASSIGN_OR_RETURN(stmt->condition, ParseExpr());
  }
  if (IsName("recursive")) return Error("recursive loops are not supported");
  RETURN_IF_ERROR(Expect(Token::kBlockEnd, "'%}'"));
  ASSIGN_OR_RETURN(stmt->body, ParseBody({"else", "endfor"}));
  if (SkipName("else")) {
    RETURN_IF_ERROR(Expect(Token::kBlockEnd, "'%}'"));
    ASSIGN_OR_RETURN(stmt->else_body, ParseBody({"endfor"}));
  }
  return EndBlock("endfor");
}

absl::Status Parser::ParseSet(Stmt* stmt) {
  stmt->kind = Stmt::kSet;
  ASSIGN_OR_RETURN(stmt->targets, ParseTargets());
  if (stmt->targets.size() == 1 && SkipOp(".")) {
    ASSIGN_OR_RETURN(stmt->attribute, ExpectName());
  }
  if (SkipOp("=")) {
    ASSIGN_OR_RETURN(stmt->expr, ParseTuple());
    return Expect(Token::kBlockEnd, "'%}'");
  }
  if (stmt->targets.size() != 1) return Error("expected '='");
  RETURN_IF_ERROR(Expect(Token::kBlockEnd, "'=' or '%}'"));
  ASSIGN_OR_RETURN(stmt->body, ParseBody({"endset"}));
  return EndBlock("endset");
}

absl::Status Parser::ParseMacro(Stmt* stmt) {
  stmt->kind = Stmt::kMacro;
  ASSIGN_OR_RETURN(stmt->name, ExpectName());
  RETURN_IF_ERROR(ExpectOp("("));
  while (!SkipOp(")")) {
    if (!stmt->targets.empty()) RETURN_IF_ERROR(ExpectOp(","));
    ASSIGN_OR_RETURN(std::string parameter, ExpectName());
    stmt->targets.push_back(std::move(parameter));
    ExprPtr value;
    if (SkipOp("=")) {
      ASSIGN_OR_RETURN(value, ParseExpr());
    }
    stmt->defaults.push_back(std::move(value));
  }
  RETURN_IF_ERROR(Expect(Token::kBlockEnd, "'%}'"));
  ASSIGN_OR_RETURN(stmt->body, ParseBody({"endmacro"}));
  return EndBlock("endmacro");
}

absl::StatusOr<std::vector<Stmt>> ParseTemplate(std::string_view source) {
  ASSIGN_OR_RETURN(std::vector<Token> tokens, Lex(source));
  return Parser(std::move(tokens)).Run();
}

}  // namespace switchyard::jinja
