#include "text/jinja_interpreter.h"

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "text/jinja_lexer.h"

namespace switchyard::jinja {
namespace {

constexpr size_t kStepsMax = 1'000'000;

Value LoopVariable(const List& items, size_t i, const std::string& name) {
  // Its methods know their loop by this.
  const auto loop = std::make_shared<const Value>(List{Value(static_cast<int64_t>(i)), name});
  const auto at = [](size_t n) { return Value(static_cast<int64_t>(n)); };
  const size_t size = items.size();
  return Value(Dict{{"index", at(i + 1)},
                    {"index0", at(i)},
                    {"revindex", at(size - i)},
                    {"revindex0", at(size - i - 1)},
                    {"first", Value(i == 0)},
                    {"last", Value(i + 1 == size)},
                    {"length", at(size)},
                    {"depth", at(1)},  // of recursion, which is not supported
                    {"depth0", at(0)},
                    {"cycle", Value(Builtin{"loop.cycle", loop})},
                    {"changed", Value(Builtin{"loop.changed", loop})},
                    {"previtem", i > 0 ? items[i - 1] : Value(Undefined{"previtem"})},
                    {"nextitem", i + 1 < size ? items[i + 1] : Value(Undefined{"nextitem"})}});
}

}  // namespace

Interpreter::Interpreter(const Dict& context, absl::Time now) : now_(now), scopes_(2) {
  for (const char* function : {"range", "namespace", "raise_exception", "dict", "strftime_now"}) {
    scopes_[0][function] = Value(Builtin{function, nullptr});
  }
  for (const auto& [name, value] : context) scopes_[0][name] = value;
}

absl::StatusOr<std::string> Interpreter::Run(const std::vector<Stmt>& body) {
  std::string out;
  RETURN_IF_ERROR(Exec(body, &out).status());
  return out;
}

absl::Status Interpreter::Charge(size_t steps) {
  steps_ += steps;
  if (steps_ <= kStepsMax) return absl::OkStatus();
  return absl::ResourceExhaustedError(absl::StrCat("more than ", kStepsMax, " steps"));
}

absl::Status Interpreter::Print(std::string_view text, std::string* out) {
  RETURN_IF_ERROR(Charge(text.size() / kBytesPerStep));
  if (text.size() > kBytesMax - out->size()) return TooLong();
  out->append(text);
  return absl::OkStatus();
}

Value Interpreter::Lookup(const std::string& name) const {
  for (size_t i = scopes_.size(); i-- > 0;) {
    if (i >= 2 && i < frame_) i = 1;  // a macro does not see its caller's names
    if (const auto it = scopes_[i].find(name); it != scopes_[i].end()) return it->second;
  }
  return Value(Undefined{name});
}

absl::StatusOr<Interpreter::Flow> Interpreter::Exec(const std::vector<Stmt>& body,
                                                    std::string* out) {
  if (++depth_ > kLevelsMax) {
    return absl::ResourceExhaustedError(absl::StrCat("more than ", kLevelsMax, " levels"));
  }
  Flow flow = Flow::kNext;
  for (const Stmt& stmt : body) {
    absl::StatusOr<Flow> result = ExecOne(stmt, out);
    if (!result.ok()) return Located(stmt.line, result.status());
    flow = *result;
    if (flow != Flow::kNext) break;
  }
  --depth_;
  return flow;
}

absl::StatusOr<Interpreter::Flow> Interpreter::ExecOne(const Stmt& stmt, std::string* out) {
  RETURN_IF_ERROR(Charge(1));
  switch (stmt.kind) {
    case Stmt::kText:
      RETURN_IF_ERROR(Print(stmt.name, out));
      return Flow::kNext;
    case Stmt::kPrint: {
      ASSIGN_OR_RETURN(const Value value, Eval(*stmt.expr));
      RETURN_IF_ERROR(Print(value.Str(), out));
      return Flow::kNext;
    }
    case Stmt::kIf:
      return ExecIf(stmt, out);
    case Stmt::kFor:
      return ExecFor(stmt, out);
    case Stmt::kSet:
      RETURN_IF_ERROR(ExecSet(stmt));
      return Flow::kNext;
    case Stmt::kMacro:
      scopes_.back()[stmt.name] = Value(Macro{&stmt});
      return Flow::kNext;
    case Stmt::kBreak:
      return Flow::kBreak;
    case Stmt::kContinue:
      return Flow::kContinue;
    case Stmt::kBlock:
      return Exec(stmt.body, out);
    case Stmt::kWith:
      return ExecWith(stmt, out);
  }
  return absl::InternalError("an unknown statement");
}

absl::StatusOr<Interpreter::Flow> Interpreter::ExecIf(const Stmt& stmt, std::string* out) {
  for (const Stmt::Branch& branch : stmt.branches) {
    ASSIGN_OR_RETURN(const Value condition, Eval(*branch.condition));
    if (condition.Truthy()) return Exec(branch.body, out);
  }
  return Exec(stmt.else_body, out);
}

absl::StatusOr<List> Interpreter::LoopItems(const Stmt& stmt) {
  ASSIGN_OR_RETURN(const Value over, Eval(*stmt.expr));
  ASSIGN_OR_RETURN(List items, Iterate(over));
  RETURN_IF_ERROR(Charge(items.size()));
  if (!stmt.condition) return items;
  List kept;
  for (const Value& item : items) {
    scopes_.emplace_back();
    absl::Status assigned = Assign(stmt.targets, item);
    absl::StatusOr<Value> keep = assigned.ok() ? Eval(*stmt.condition) : assigned;
    scopes_.pop_back();
    if (!keep.ok()) return keep.status();
    if (keep->Truthy()) kept.push_back(item);
  }
  return kept;
}

absl::StatusOr<Interpreter::Flow> Interpreter::ExecFor(const Stmt& stmt, std::string* out) {
  ASSIGN_OR_RETURN(const List items, LoopItems(stmt));
  if (items.empty()) return Exec(stmt.else_body, out);
  const std::string name = absl::StrCat(++loops_);
  for (size_t i = 0; i < items.size(); ++i) {
    scopes_.emplace_back();
    scopes_.back()["loop"] = LoopVariable(items, i, name);
    absl::Status assigned = Assign(stmt.targets, items[i]);
    absl::StatusOr<Flow> flow = assigned.ok() ? Exec(stmt.body, out) : assigned;
    scopes_.pop_back();
    if (!flow.ok()) return flow.status();
    if (*flow == Flow::kBreak) break;
  }
  changed_.erase(name);
  return Flow::kNext;
}

absl::StatusOr<Interpreter::Flow> Interpreter::ExecWith(const Stmt& stmt, std::string* out) {
  Scope scope;
  for (size_t i = 0; i < stmt.targets.size(); ++i) {
    ASSIGN_OR_RETURN(scope[stmt.targets[i]], Eval(*stmt.defaults[i]));
  }
  scopes_.push_back(std::move(scope));
  absl::StatusOr<Flow> flow = Exec(stmt.body, out);
  scopes_.pop_back();
  return flow;
}

absl::StatusOr<Value> Interpreter::CallLoopMethod(const std::string& name, const Value& loop,
                                                  const Arguments& args) {
  const List& self = *loop.AsList();
  if (args.positional.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(name, " needs a value"));
  }
  if (name == "loop.cycle") {
    return args.positional[static_cast<size_t>(self[0].ToInt()) % args.positional.size()];
  }
  const Value now(args.positional);
  Value& before = changed_[*self[1].AsString()];
  const bool changed = !Equal(before, now);
  before = now;
  return Value(changed);
}

absl::Status Interpreter::Assign(const std::vector<std::string>& targets, const Value& value) {
  if (targets.size() == 1) {
    scopes_.back()[targets[0]] = value;
    return absl::OkStatus();
  }
  const List* parts = value.AsList();
  if (parts == nullptr || parts->size() != targets.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("cannot unpack ", value.TypeName(), " into ", targets.size(), " names"));
  }
  for (size_t i = 0; i < targets.size(); ++i) scopes_.back()[targets[i]] = (*parts)[i];
  return absl::OkStatus();
}

absl::Status Interpreter::ExecSet(const Stmt& stmt) {
  Value value;
  if (stmt.expr) {
    ASSIGN_OR_RETURN(value, Eval(*stmt.expr));
  } else {
    std::string text;
    scopes_.emplace_back();
    absl::Status status = Exec(stmt.body, &text).status();
    scopes_.pop_back();
    RETURN_IF_ERROR(status);
    value = Value(std::move(text));
  }
  if (stmt.attribute.empty()) return Assign(stmt.targets, value);
  const Value object = Lookup(stmt.targets[0]);
  Namespace* space = object.AsNamespace();
  if (space == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat("'", stmt.targets[0], "' is no namespace: its attributes cannot be set"));
  }
  if (value.depth() >= Value::kDepthMax) {
    return absl::InvalidArgumentError("a namespace cannot hold a namespace or 200 levels");
  }
  space->fields[stmt.attribute] = std::move(value);
  return absl::OkStatus();
}

}  // namespace switchyard::jinja
