// common/check.h: CHECK our own invariants only. Corruption must stop the process; bad input and
// overload must not (they are an absl::Status). Always on, in every build.
#pragma once

#include <cstdio>
#include <cstdlib>

#include "absl/strings/str_cat.h"

namespace switchyard::internal {
[[noreturn]] inline void CheckFailed(const char* file, int line, const std::string& what) {
  std::fprintf(stderr, "%s:%d: invariant broken: %s\n", file, line, what.c_str());
  std::abort();
}
}  // namespace switchyard::internal

#define SY_CHECK(cond)                                                \
  do {                                                                \
    if (!(cond)) [[unlikely]] {                                       \
      ::switchyard::internal::CheckFailed(__FILE__, __LINE__, #cond); \
    }                                                                 \
  } while (false)

// SY_CHECK_MSG(cond, "what", value, …): the same, with the values that explain it.
#define SY_CHECK_MSG(cond, ...)                                                    \
  do {                                                                             \
    if (!(cond)) [[unlikely]] {                                                    \
      ::switchyard::internal::CheckFailed(__FILE__, __LINE__,                      \
                                          absl::StrCat(#cond, ": ", __VA_ARGS__)); \
    }                                                                              \
  } while (false)
