// model/cuda/step_arrays.h: one step as a device wants it: flat arrays at fixed places, so that a
// recorded step reads the next one's. Pure arithmetic on the host.
//
// Letters: T rows, S sequences, N logit rows.
#pragma once

#include <compare>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels/cuda/attention.h"
#include "kernels/cuda/sample.h"
#include "model/model.h"

namespace switchyard::cuda {

// The numbers that decide what is launched. Steps of one shape launch the same.
struct StepShape {
  int rows = 0, sequences = 0, logit_rows = 0;
  int rows_max = 0;     // of one sequence
  int context_max = 0;  // the most that a row attends to
  friend auto operator<=>(const StepShape&, const StepShape&) = default;
};
StepShape ShapeOf(const ForwardBatch& batch);
// Whether `exact` decodes only: a row of each sequence, with logits.
bool IsDecode(const StepShape& exact);
// The class of a decode step: rows up to a power of two, at most rows_max; context to a power of
// two from 512, at most context_max. There are few classes, and a recorded graph for each.
StepShape DecodeClass(const StepShape& exact, int rows_max, int context_max);

// Bytes for the partial results of attention if the step's contexts are to be shared between blocks
// segment by segment; 0: they are not. Worth it for one row of each sequence, with contexts of
// several segments; the bits are the same either way (kernels/cuda/attention.h), so that a step
// whose partial results exceed `room` does without.
size_t SplitBytes(const StepShape& shape, const AttentionShape& attention, DType cache,
                  size_t room);

// What the arrays have room for.
struct StepLimits {
  int rows = 0, sequences = 0, tables = 0, logit_rows = 0;
  int groups = 0;  // of heads: query heads, or those of the output projection
};

struct StepArrays {
  int32_t* tokens = nullptr;            // [T]
  int32_t* positions = nullptr;         // [T]; padding: 0
  int64_t* slots = nullptr;             // [T] block · block_tokens + token; padding: -1
  DeviceSequence* sequences = nullptr;  // [S]; padding: no rows
  int32_t* tables = nullptr;            // block tables, one after another
  int32_t* logit_rows = nullptr;        // [N]; padding: 0
  RowSampling* sampling = nullptr;      // [N]; without a draw: greedy
  int32_t* group_rows = nullptr;        // [groups], each T
};
// The arrays' places in memory of BytesFor(limits), which begins at a multiple of 256. Of the host,
// or of a device.
size_t BytesFor(const StepLimits& limits);
StepArrays PlaceArrays(std::byte* memory, const StepLimits& limits);

// Rows [begin, end) of `batch` as a batch of their own, without logits; a sequence may be cut at
// any row. `sequences` is its memory.
ForwardBatch RowsOfBatch(const ForwardBatch& batch, size_t begin, size_t end,
                         std::vector<AttentionSequence>* sequences);

// Elements of `tables` that a batch needs.
int TablesOf(const ForwardBatch& batch);
// Fills the arrays in the host's memory with `batch`, padded to `shape`.
void FillArrays(const ForwardBatch& batch, int block_tokens, int groups, const StepShape& shape,
                const StepArrays& to);

// Calls copy(offset, bytes) for what FillArrays has filled.
template <typename Copy>
absl::Status ForFilled(const StepArrays& a, const std::byte* memory, const StepShape& shape,
                       int tables, int groups, Copy copy) {
  const auto piece = [&](const auto* data, int count) {
    return copy(static_cast<size_t>(reinterpret_cast<const std::byte*>(data) - memory),
                static_cast<size_t>(count) * sizeof(*data));
  };
  for (const absl::Status& s : {piece(a.tokens, shape.rows), piece(a.positions, shape.rows),
                                piece(a.slots, shape.rows), piece(a.sequences, shape.sequences),
                                piece(a.tables, tables), piece(a.logit_rows, shape.logit_rows),
                                piece(a.sampling, shape.logit_rows), piece(a.group_rows, groups)}) {
    if (!s.ok()) return s;
  }
  return absl::OkStatus();
}

}  // namespace switchyard::cuda
