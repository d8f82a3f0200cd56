// common/status_macros.h: early return for absl::Status and absl::StatusOr.
#pragma once

#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#define SY_CONCAT_INNER(a, b) a##b
#define SY_CONCAT(a, b) SY_CONCAT_INNER(a, b)

// RETURN_IF_ERROR(expr): returns the status of expr if it is not OK.
#define RETURN_IF_ERROR(expr)                                 \
  do {                                                        \
    if (absl::Status sy_status_ = (expr); !sy_status_.ok()) { \
      return sy_status_;                                      \
    }                                                         \
  } while (false)

// ASSIGN_OR_RETURN(lhs, expr): lhs = value of the StatusOr, or returns its status.
#define ASSIGN_OR_RETURN(lhs, expr) SY_ASSIGN_OR_RETURN(SY_CONCAT(sy_or_, __LINE__), lhs, expr)
#define SY_ASSIGN_OR_RETURN(tmp, lhs, expr) \
  auto tmp = (expr);                        \
  if (!tmp.ok()) return tmp.status();       \
  lhs = *std::move(tmp)
