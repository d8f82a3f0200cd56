#include "text/pattern.h"

#include "common/status_macros.h"

namespace switchyard {

absl::StatusOr<Regex> ParsePattern(Json component, std::string_view name) {
  const std::optional<Json> pattern = FindField(component, "pattern");
  if (pattern && FindField(*pattern, "Regex")) {
    ASSIGN_OR_RETURN(std::string_view regex, StringField(*pattern, name, "Regex"));
    return Regex::Compile(regex);
  }
  if (pattern && FindField(*pattern, "String")) {
    ASSIGN_OR_RETURN(std::string_view literal, StringField(*pattern, name, "String"));
    if (literal.empty()) return Unsupported(name, "pattern", "", "a pattern that is not empty");
    return Regex::Literal(literal);
  }
  return Unsupported(name, "pattern", "(another form)", "{String} or {Regex}");
}

}  // namespace switchyard
