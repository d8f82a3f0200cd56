// moe/row_exchange.h: rows between the ranks that compute attention together, each some of its
// heads: gathers of normed rows, sums of partial projections, the batch itself. One call serves all
// of them; who sends what to whom is the caller's arithmetic (model/tensor_parallel.h).
// Collective: the N ranks make the same calls in the same order. Owned by the engine thread.
#pragma once

#include <span>

#include "absl/status/status.h"
#include "common/bf16.h"
#include "common/tensor_view.h"

namespace switchyard {

class RowExchange {
 public:
  virtual ~RowExchange() = default;

  virtual int rank() const = 0;   // of N
  virtual int ranks() const = 0;  // N

  // Sends to[r] to each other rank r and fills from[r] with what r sends here; both [N], what
  // stands at this rank is not looked at. The matrix that r gives for this rank has the shape of
  // from[r]; all have the same number of columns, at most what a ring's frame holds. `wire`: what
  // the numbers are rounded to on their way; as FP32 every bit arrives. When it returns all is here
  // and `to` may be overwritten. kUnavailable if a rank is lost: the epoch is over.
  virtual absl::Status Exchange(std::span<const Matrix<const float>> to,
                                std::span<const Matrix<float>> from, DType wire) = 0;
};

}  // namespace switchyard
