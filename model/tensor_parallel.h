// model/tensor_parallel.h: attention of one batch on N ranks at once, the rest of a layer on a Nth
// of its rows each (docs/expert-parallelism.md, "Tensor parallelism"; sequence parallelism:
// Korthikanti et al. 2022).
//
//   rows of this rank ─ norm ─► gather ─► rows of all ─ attention of this rank's heads
//     ▲                                                    │ partial sums of all rows
//     └── + ◄─────────── sum over ranks, in a tree ◄───────┘
//
// Letters: N ranks, T rows of a batch, H hidden.
#pragma once

#include <span>
#include <vector>

#include "absl/status/status.h"
#include "common/tensor_view.h"
#include "kernels/context.h"
#include "moe/row_exchange.h"

namespace switchyard {

// Rows [begin, begin + count) of a batch.
struct RowSlice {
  size_t begin = 0, count = 0;
};
RowSlice SliceOf(size_t rows, int rank, int ranks);

// all [T, H] = the slices of all ranks; `mine` is this rank's.
absl::Status GatherRows(RowExchange& ranks, Matrix<const float> mine, DType wire,
                        Matrix<float> all);
// *mine = this rank's slice of the sum of all ranks' `partial` [T, H]: pairs of neighbours, pairs
// of pairs, and so on. `parts` holds (N − 1) · slice · H numbers. *mine lies in `partial` or
// `parts`.
absl::Status SumRows(RowExchange& ranks, ComputePool& pool, Matrix<float> partial, float* parts,
                     Matrix<float>* mine);
// On rank 0: rows [sum of counts, H] = counts[r] rows from each rank r, in order. On the others:
// sends `rows`, counts[rank] of them.
absl::Status CollectRows(RowExchange& ranks, std::span<const size_t> counts, Matrix<float> rows);

}  // namespace switchyard
