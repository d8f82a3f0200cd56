// text/jinja_interpreter.h: runs a parsed template: statements in jinja_interpreter.cc, expressions
// in jinja_evaluate.cc, arithmetic in jinja_arithmetic.cc.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "text/jinja_ast.h"
#include "text/jinja_builtins.h"

namespace switchyard::jinja {

// One per rendering; not thread-safe.
class Interpreter {
 public:
  // `context`: the variables that the template sees; a dict. `now`: what strftime_now tells.
  Interpreter(const Dict& context, absl::Time now);

  // The text that `body` prints. kInvalidArgument with the line: what the template raises and what
  // it does wrong. kResourceExhausted: more than 1,000,000 steps, 16 MiB, or nested too deep.
  absl::StatusOr<std::string> Run(const std::vector<Stmt>& body);

 private:
  enum class Flow { kNext, kBreak, kContinue };
  using Scope = std::map<std::string, Value, std::less<>>;

  absl::StatusOr<Flow> Exec(const std::vector<Stmt>& body, std::string* out);
  absl::StatusOr<Flow> ExecOne(const Stmt& stmt, std::string* out);
  absl::StatusOr<Flow> ExecIf(const Stmt& stmt, std::string* out);
  absl::StatusOr<Flow> ExecFor(const Stmt& stmt, std::string* out);
  absl::StatusOr<Flow> ExecWith(const Stmt& stmt, std::string* out);
  absl::StatusOr<List> LoopItems(const Stmt& stmt);
  absl::Status ExecSet(const Stmt& stmt);
  absl::Status Assign(const std::vector<std::string>& targets, const Value& value);

  absl::StatusOr<Value> Eval(const Expr& expr);
  absl::StatusOr<Value> EvalKind(const Expr& expr);
  absl::StatusOr<Value> EvalAttribute(const Expr& expr);
  absl::StatusOr<Value> EvalIndex(const Expr& expr);
  absl::StatusOr<Value> EvalSlice(const Expr& expr);
  absl::StatusOr<Value> EvalContainer(const Expr& expr);
  absl::StatusOr<Value> EvalBinary(const Expr& expr);
  absl::StatusOr<Value> EvalConcat(const Expr& expr);
  absl::StatusOr<Value> EvalCompare(const Expr& expr);
  absl::StatusOr<Value> EvalCall(const Expr& expr);
  absl::StatusOr<Arguments> EvalArguments(const Expr& expr);
  absl::StatusOr<Value> CallFunction(const std::string& name, const Arguments& args);
  // loop.cycle and loop.changed; `loop`: the index, and the name of this run of the loop.
  absl::StatusOr<Value> CallLoopMethod(const std::string& name, const Value& loop,
                                       const Arguments& args);
  absl::StatusOr<Value> CallMacro(const Stmt& macro, const Arguments& args);

  Value Lookup(const std::string& name) const;
  // Counts `steps` and refuses too many.
  absl::Status Charge(size_t steps);
  // What a filter or a test may read: all of `in`, and for each of its items the arguments.
  absl::Status ChargeReading(const Value& in, const Arguments& args);
  absl::Status Print(std::string_view text, std::string* out);

  const absl::Time now_;
  std::vector<Scope> scopes_;  // [0] the context, [1] the template's own names, then blocks
  size_t frame_ = 2;           // where the scopes of the running macro begin
  size_t steps_ = 0;
  int depth_ = 0;
  size_t loops_ = 0;                      // begun so far
  std::map<std::string, Value> changed_;  // what loop.changed saw last, by run
};

constexpr size_t kBytesPerStep = 256;  // making a long value counts as many steps
// Of expressions, blocks and macro calls together. A level takes a few hundred bytes of stack,
// about 2 KiB under AddressSanitizer: far from the usual 8 MiB.
constexpr int kLevelsMax = 300;

// left op right for + - * / // % **. kInvalidArgument for types and overflow.
absl::StatusOr<Value> Arithmetic(std::string_view op, const Value& left, const Value& right);

}  // namespace switchyard::jinja
