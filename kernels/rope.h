// kernels/rope.h: rotary position embedding (Su et al. 2021) from a precomputed table.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "common/tensor_view.h"

namespace switchyard {

// cos and sin of position · frequency, with any attention factor already multiplied in.
struct RopeTable {
  int dim = 0;             // rotated elements per head, even
  int positions = 0;       // rows of the table
  std::vector<float> cos;  // [positions, dim/2]
  std::vector<float> sin;  // [positions, dim/2]
};

enum class RopeStyle {
  kHalfSplit,    // pairs (i, i + dim/2): Llama, Qwen
  kInterleaved,  // pairs (2i, 2i + 1): DeepSeek's checkpoints. The rotated pair is stored where it
                 // was; q and k agree, so scores equal those of any other storage order.
};

// Rotates x[t][head·head_stride + i], i in [0, dim), for every row t and head, in place:
// (a, b) -> (a·cos − b·sin, b·cos + a·sin), each product and sum rounded to FP32. x starts at the
// first rotated element of head 0. positions [T], each < table.positions.
void ApplyRope(const RopeTable& table, RopeStyle style, std::span<const int32_t> positions,
               int heads, size_t head_stride, Matrix<float> x);

}  // namespace switchyard
