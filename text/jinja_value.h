// text/jinja_value.h: a value of the template language, with Python's semantics. Values are
// immutable, except namespaces, and cheap to copy: they share what they hold.
#pragma once

#include <algorithm>
#include <cstdint>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "absl/status/statusor.h"

namespace switchyard::jinja {

struct Stmt;
class Value;

using List = std::vector<Value>;
using Dict = std::vector<std::pair<std::string, Value>>;  // in insertion order

struct Undefined {
  std::string name;  // what was looked up
};
struct None {};
struct Namespace {
  std::map<std::string, Value> fields;
};
struct Macro {
  const Stmt* definition;
};
// A function of the language (range, raise_exception, …) or a method with its object.
struct Builtin {
  std::string name;
  std::shared_ptr<const Value> self;  // null for a function
};

class Value {
 public:
  Value() : v_(Undefined{}) {}
  Value(Undefined u) : v_(std::move(u)) {}
  Value(None n) : v_(n) {}
  Value(bool b) : v_(b) {}
  Value(int64_t i) : v_(i) {}
  Value(double d) : v_(d) {}
  Value(std::string s) : v_(std::make_shared<const std::string>(std::move(s))) {}
  Value(const char* s) : Value(std::string(s)) {}
  Value(List l) {
    for (const Value& item : l) Contain(item);
    v_ = std::make_shared<const List>(std::move(l));
  }
  Value(Dict d) {
    for (const auto& item : d) Contain(item.second);
    v_ = std::make_shared<const Dict>(std::move(d));
  }
  Value(std::shared_ptr<Namespace> n) : v_(std::move(n)) {}
  Value(Macro m) : v_(m) {}
  Value(Builtin b) {
    if (b.self) Contain(*b.self);
    v_ = std::move(b);
  }

  bool IsUndefined() const { return std::holds_alternative<Undefined>(v_); }
  bool IsNone() const { return std::holds_alternative<None>(v_); }
  bool IsBool() const { return std::holds_alternative<bool>(v_); }
  bool IsInt() const { return std::holds_alternative<int64_t>(v_); }
  bool IsFloat() const { return std::holds_alternative<double>(v_); }
  bool IsNumber() const { return IsInt() || IsFloat() || IsBool(); }  // as Python: bool is one
  const std::string* AsString() const { return Held<const std::string>(); }
  const List* AsList() const { return Held<const List>(); }
  const Dict* AsDict() const { return Held<const Dict>(); }
  Namespace* AsNamespace() const { return Held<Namespace>(); }
  const Macro* AsMacro() const { return std::get_if<Macro>(&v_); }
  const Builtin* AsBuiltin() const { return std::get_if<Builtin>(&v_); }
  const Undefined* AsUndefined() const { return std::get_if<Undefined>(&v_); }

  // Levels of containers. Who makes a container or fills a namespace refuses more than kDepthMax:
  // recursion over values stays bounded, and a namespace can never hold itself.
  static constexpr int kDepthMax = 200;
  int depth() const { return AsNamespace() != nullptr ? kDepthMax : depth_; }
  // Bytes of strings, and kBytes for each value, counted as often as it would be printed: a list of
  // a list twice of a list twice … is small in memory but not to whoever walks it.
  static constexpr size_t kBytes = 64;
  size_t weight() const { return AsString() != nullptr ? AsString()->size() + kBytes : weight_; }

  bool Truthy() const;
  int64_t ToInt() const;    // of a bool or int, else 0
  double ToDouble() const;  // of a number, else 0
  std::string TypeName() const;
  // What {{ }} prints: Python's str(); Undefined prints nothing.
  std::string Str() const;
  // Python's repr(), appended.
  void Repr(std::string* out) const;
  // Items of a dict by key; nothing if this is no dict or has no such key.
  const Value* Find(std::string_view key) const;

 private:
  template <typename T>
  T* Held() const {
    const auto* p = std::get_if<std::shared_ptr<T>>(&v_);
    return p ? p->get() : nullptr;
  }

  void Contain(const Value& item) {
    depth_ = std::max(depth_, item.depth() + 1);
    weight_ += item.weight();
  }

  int depth_ = 0;
  size_t weight_ = kBytes;
  std::variant<Undefined, None, bool, int64_t, double, std::shared_ptr<const std::string>,
               std::shared_ptr<const List>, std::shared_ptr<const Dict>, std::shared_ptr<Namespace>,
               Macro, Builtin>
      v_;
};

bool Equal(const Value& a, const Value& b);
// a < b as Python orders numbers, strings and lists; kInvalidArgument for other pairs.
absl::StatusOr<bool> Less(const Value& a, const Value& b);

// kInvalidArgument if nested more than 200 deep. Unsigned integers past int64 become floats.
absl::StatusOr<Value> FromJson(const nlohmann::json& json);
absl::StatusOr<Value> FromJson(const nlohmann::ordered_json& json);

// json.dumps with its options; on one line if `indent` is negative.
struct JsonStyle {
  int indent = -1;
  std::string item = ", ", key = ": ";  // separators
  bool ensure_ascii = false, sort_keys = false;
};
// kResourceExhausted beyond `bytes_max` bytes.
absl::StatusOr<std::string> ToJson(const Value& value, const JsonStyle& style, size_t bytes_max);

// repr() of a float: the shortest digits that read back the same.
std::string FloatRepr(double value);

}  // namespace switchyard::jinja
