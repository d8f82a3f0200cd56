// kernels/attention.h: causal attention of a mixed batch (prefill chunks and decode rows alike)
// over a paged KV cache. One kernel serves GQA and absorbed MLA: both are H query heads that share
// G key/value heads, MLA with G = 1 and values that are the first columns of the keys (DeepSeek-V2,
// section 2.1).
//
// Bits: keys in segments of 512 from position 0; inside a segment an online softmax (Milakov &
// Gimelshein 2018; FlashAttention, Dao 2022) over fixed sub-blocks; segments merged in ascending
// order. With a BF16 cache, queries and softmax weights are rounded to BF16 as well before they are
// multiplied; the softmax and its sum are FP32. A row's bits depend on its query, its position and
// the cached keys alone.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>

#include "common/bf16.h"
#include "common/tensor_view.h"
#include "kernels/context.h"

namespace switchyard {

inline constexpr int kAttentionSegment = 512;

// How one layer's keys and values lie in the bytes of a block; offsets and strides in elements.
struct KvAddressing {
  DType dtype = DType::kBfloat16;
  int block_tokens = 16;
  size_t block_stride = 0;  // between blocks of this layer
  size_t k_offset = 0, k_head_stride = 0, k_token_stride = 0;
  size_t v_offset = 0, v_head_stride = 0, v_token_stride = 0;
};

struct AttentionShape {
  int heads = 0;     // H: query heads of this rank
  int kv_heads = 0;  // G: divides heads; head h reads kv head h / (H / G)
  int qk_dim = 0;    // length of a query and of a key
  int v_dim = 0;
  float scale = 1.0f;  // of q·k before the softmax
  int window = 0;      // a row attends to so many positions, its own the last; 0: to all before it
};

// The rows of one sequence in the batch: `count` consecutive rows from `first_row`, at positions
// first_position, first_position + 1, …; row i attends to positions 0 … first_position + i, or the
// last `window` of these, all of which are already in the cache (this step's own keys too).
struct AttentionSequence {
  int32_t first_row = 0, count = 0, first_position = 0;
  std::span<const int32_t> blocks;  // block table: block b holds positions [b·bt, (b+1)·bt)
};

// Those of its rows that are in [begin, end) of the batch, counted from `begin`; where there are
// none, count is 0 and the rest says nothing.
inline AttentionSequence RowsWithin(AttentionSequence s, size_t begin, size_t end) {
  const auto first = std::max(s.first_row, static_cast<int32_t>(begin));
  const auto last = std::min(s.first_row + s.count, static_cast<int32_t>(end));
  s.first_position += first - s.first_row;
  s.first_row = first - static_cast<int32_t>(begin);
  s.count = std::max(0, last - first);
  return s;
}

class AttentionOps {
 public:
  virtual ~AttentionOps() = default;
  // q [T, H·qk_dim], out [T, H·v_dim] (overwritten for every row of every sequence); kv: base
  // address of this layer. Bytes of the cache past a row's context are never used (they may be
  // NaN); those before its window may be multiplied by 0.
  virtual void PagedAttention(KernelContext& ctx, const AttentionShape& shape,
                              const KvAddressing& addressing, const std::byte* kv,
                              std::span<const AttentionSequence> sequences, Matrix<const float> q,
                              Matrix<float> out) const = 0;
};

}  // namespace switchyard
