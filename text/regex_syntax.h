// text/regex_syntax.h: the patterns of tokenizer.json are written for Oniguruma (Ruby syntax,
// Unicode); this rewrites one for PCRE2 with UTF, UCP and MULTILINE, so that it matches the same.
#pragma once

#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace switchyard {

// What differs and is rewritten: \s \w \b \h, script names (Oniguruma's are Script, PCRE2's are
// Script_Extensions), long category names, \uHHHH, x{n,m}+ (greedy, not possessive), {,n}, (?m),
// nested classes and && in classes. kInvalidArgument names what has no counterpart.
absl::StatusOr<std::string> OnigurumaToPcre2(std::string_view pattern);

}  // namespace switchyard
