// model/micro_batch.h: the rows of one step, or of half of one, on their way through the layers,
// and the memory that each stage leaves for the next.
//
// Letters: T rows of this rank, A rows of all ranks that compute attention together (without tensor
// parallelism the same), H hidden, K top-k, h query heads, R rows received by this rank's experts.
#pragma once

#include <algorithm>
#include <span>
#include <vector>

#include "kernels/attention.h"
#include "kernels/gemm.h"
#include "model/tensor_parallel.h"
#include "moe/dispatch.h"

namespace switchyard {

// An array that grows to the largest request and stays: a steady-state step allocates nothing.
template <typename T>
class GrowingArray {
 public:
  // Content is undefined after a call that asks for more than before.
  T* Get(size_t count) {
    count = std::max<size_t>(count, 1);  // never null, so that pointers into it may be formed
    if (bytes_.size() < count * sizeof(T)) bytes_ = AlignedBuffer(count * sizeof(T));
    return reinterpret_cast<T*>(bytes_.data());
  }
  Matrix<T> Get(size_t rows, size_t cols) { return {Get(rows * cols), {rows, cols}}; }

 private:
  AlignedBuffer bytes_;
};

struct MicroBatch {
  // Set by the executor's caller before layer 0.
  std::vector<AttentionSequence> sequences;  // cover [0, A)
  // The same rows by MLA's form: prompt tokens where these are expanded, and all others.
  std::vector<AttentionSequence> expanded, absorbed;
  std::vector<int32_t> positions;  // [A]
  size_t first = 0;                // the batch's first row among all of the step
  RowSlice own;                    // of the batch: this rank's
  Matrix<float> residual;          // [T, H]: in and out of every stage

  // Attention's own, free between stages.
  GrowingArray<float> normed, q_low, q, q_latent, kv, k, v, context, heads_out, projected, partial,
      gathered, parts;
  GrowingArray<GemmCall> head_calls;
  // What is expanded at the moment, MLA's: sequences whose blocks are of `expanded_kv`.
  std::vector<AttentionSequence> expanding;
  GrowingArray<const std::byte*> cached_tokens;
  GrowingArray<int32_t> expanded_blocks;
  GrowingArray<float> latents, expanded_sums;
  GrowingArray<std::byte> expanded_kv;

  // From one stage of an MoE layer to the next.
  GrowingArray<float> gate_logits, gate_weights, moe_sum, shared_out;
  GrowingArray<int32_t> expert_ids;
  GrowingArray<std::byte> expert_bytes;
  Matrix<float> ffn_input;  // [T, H]: view of `normed`
  DispatchHandle dispatch;
  DispatchedRows received;
  Rows expert_rows;  // [R, H]: view of `expert_bytes`

  size_t rows() const { return residual.rows(); }       // T
  size_t all_rows() const { return positions.size(); }  // A
  std::span<const int32_t> own_positions() const {
    return std::span(positions).subspan(own.begin, own.count);
  }
};

}  // namespace switchyard
