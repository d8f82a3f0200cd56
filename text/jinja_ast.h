// text/jinja_ast.h: a parsed template.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "text/jinja_value.h"

namespace switchyard::jinja {

struct Expr;
using ExprPtr = std::unique_ptr<Expr>;

struct Expr {
  enum Kind {
    kLiteral,    // value
    kName,       // name
    kList,       // kids
    kDict,       // kids: key, value, key, value, …
    kAttribute,  // kids[0].name
    kIndex,      // kids[0][kids[1]]
    kSlice,      // kids[0][kids[1]:kids[2]:kids[3]]; an absent bound is a null kid
    kCall,       // kids[0](kids[1..], named)
    kFilter,     // kids[0] | name(kids[1..], named)
    kTest,       // kids[0] is name(kids[1..])
    kNot,        // not kids[0]
    kNegate,     // -kids[0]
    kPlus,       // +kids[0]
    kBinary,     // kids[0] name kids[1]: + - * / // % ** and or
    kConcat,     // kids joined by ~
    kCompare,    // kids[0] ops[0] kids[1] ops[1] kids[2] …
    kIfElse,     // kids[1] if kids[0] else kids[2]; kids[2] may be null
  };
  Kind kind;
  int line;
  int depth = 1;  // levels below and including this one: the parser bounds it
  std::string name;
  Value value;
  std::vector<ExprPtr> kids;
  std::vector<std::string> ops;
  std::vector<std::pair<std::string, ExprPtr>> named;
};

struct Stmt {
  enum Kind {
    kText,   // name: the text
    kPrint,  // expr
    kIf,     // branches, else_body
    kFor,    // targets in expr if condition: body, else_body
    kSet,    // targets = expr, or target.attribute = expr; a block set has body, no expr
    kMacro,  // macro name(targets = defaults): body
    kBreak,
    kContinue,
    kBlock,  // body, in the same scope ({% generation %})
    kWith,   // body, in a scope of its own with targets = defaults
  };
  struct Branch {
    ExprPtr condition;
    std::vector<Stmt> body;
  };
  Kind kind;
  int line;
  std::string name;
  std::string attribute;
  std::vector<std::string> targets;
  ExprPtr expr;
  ExprPtr condition;
  std::vector<ExprPtr> defaults;  // one per target, null where there is none
  std::vector<Branch> branches;
  std::vector<Stmt> body;
  std::vector<Stmt> else_body;
};

}  // namespace switchyard::jinja
