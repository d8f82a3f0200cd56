// kernels/cuda/quant.h: activations as integers of 8 bits or as FP8 (E4M3), in groups of 128 along
// a row, each with a scale.
//
// Grid: one warp per group, a block of 4 warps for 4 groups of one row; a lane has 4 neighbours.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "kernels/cuda/matrix.h"

namespace switchyard::cuda {

inline constexpr int kQuantGroup = 128;
constexpr int QuantGroups(int cols) { return (cols + kQuantGroup - 1) / kQuantGroup; }

// values [rows, groups · 128], zeros past cols; scales [rows, groups]. Both dense in their rows.
struct QuantizedRows {
  uint8_t* values = nullptr;  // int8_t, or E4M3
  float* scales = nullptr;
  int rows = 0, cols = 0;
  constexpr int groups() const { return QuantGroups(cols); }
  constexpr int64_t stride() const { return int64_t{groups()} * kQuantGroup; }
};

// Scale and integers of kernels/int8.h, to the bit.
absl::Status QuantizeInt8(Stream stream, DeviceRows x, const QuantizedRows& out);

// E4M3 with scale = greatest |x| / 448 (1 where all are 0), values x / scale rounded to nearest
// even, saturated: DeepSeek-V3, section 3.3.2. A group with a NaN or infinity: scale NaN, values 0.
absl::Status QuantizeFp8(Stream stream, DeviceRows x, const QuantizedRows& out);

}  // namespace switchyard::cuda
