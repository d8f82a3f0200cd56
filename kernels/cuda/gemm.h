// kernels/cuda/gemm.h: y = x · wᵀ, dense or grouped by expert, on tensor cores.
//
// Bits: each output is one chain over k in steps of 16 (BF16), in groups of 128 with one scaled add
// for each (FP8, integers), whatever the tile, the group or M: a dense product is a grouped one
// with one group, and no shape is split over k. kMmaSync and kWgmma may differ in bits: an engine
// uses one and names it in its numerics_id.
#pragma once

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/cuda/matrix.h"
#include "kernels/cuda/quant.h"
#include "kernels/gemm.h"

namespace switchyard::cuda {

// kMmaSync: mma.sync m16n8k16 fed by cp.async and ldmatrix (sm_80 and later). kWgmma: warpgroup MMA
// fed by the tensor memory accelerator (sm_90a); BF16 and FP8, others take kMmaSync's kernels.
enum class GemmPath { kMmaSync, kWgmma };

enum class DeviceFormat : uint8_t {
  kFloat32,   // FP32 by fma, one chain; x FP32
  kBfloat16,  // x BF16
  kInt8,      // kernels/int8.h, x QuantizeInt8
  kInt4,      // the same, weights of 4 bits
  kFp8,       // E4M3 with an FP32 scale for each 128 × 128 block (DeepSeek-V3); x QuantizeFp8
};
constexpr DeviceFormat FormatOf(WeightFormat f) { return static_cast<DeviceFormat>(f); }

// E weights [N, K]. Rows of K padded with zeros to a multiple of 128 (kPaddedK), row-major:
// data [E][N][padded K] in the format's type (kInt4: two to a byte, the even k low);
// scales: kInt8, kInt4 [E][N][K/128]; kFp8 [E][N/128][K/128] (both rounded up); else null.
struct DeviceWeight {
  DeviceFormat format = DeviceFormat::kBfloat16;
  int groups = 1, n = 0, k = 0;
  const std::byte* data = nullptr;  // 128-byte aligned
  const float* scales = nullptr;
};
inline constexpr int kPaddedK = 128;
constexpr int64_t PaddedK(int64_t k) { return (k + kPaddedK - 1) / kPaddedK * kPaddedK; }
// Of one weight [n, k].
size_t WeightBytes(DeviceFormat format, int n, int k);
size_t WeightScales(DeviceFormat format, int n, int k);

// Host to host: one weight of a checkpoint into the layout above, to be copied to the device by the
// caller. Not for kFp8, whose checkpoints have that form: see PackFp8.
void PackWeight(const WeightView& w, DeviceFormat format, std::byte* data, float* scales);
// gate and up [I, K] as one weight [2I, K], row 2i of gate and 2i + 1 of up, for
// Epilogue::kSiluMul.
void PackGateUp(const WeightView& gate, const WeightView& up, DeviceFormat format, std::byte* data,
                float* scales);
// values [n, k] E4M3 and scales [⌈n/128⌉, ⌈k/128⌉], row-major, as checkpoints have them.
void PackFp8(const uint8_t* values, const float* block_scales, int n, int k, std::byte* data,
             float* scales);

// The left operand: kFloat32 `values` float, kBfloat16 Bf16 (see kRowUnit), else of QuantizedRows.
struct GemmInput {
  const void* values = nullptr;
  int rows = 0;
  int64_t stride = 0;             // elements
  const float* scales = nullptr;  // [rows, K/128], dense
  GemmInput() = default;
  GemmInput(DeviceRows x) : values(x.data), rows(x.rows), stride(x.stride) {}  // NOLINT
  GemmInput(const QuantizedRows& x)                                            // NOLINT
      : values(x.values), rows(x.rows), stride(x.stride()), scales(x.scales) {}
};

// Which rows are whose. All null: all rows are group 0's. Device arrays, so that no host waits.
struct RowGroups {
  // Contiguous: rows of group g are [offsets[g], offsets[g + 1]), offsets[groups] <= x.rows.
  const int32_t* offsets = nullptr;
  // Masked: rows of group g are [g · rows_per_group, + counts[g]): fixed places for what arrives.
  const int32_t* counts = nullptr;
  int rows_per_group = 0;
};

enum class Epilogue {
  kStore,    // y [R, N]
  kSiluMul,  // y [R, N/2] = SiLU(column 2i) · column 2i + 1, of a weight that PackGateUp made
};

// y FP32 or BF16 (rounded from the FP32 sum); rows that belong to no group are not written. x and y
// do not overlap. Errors: kInternal, also for kWgmma where the driver has no tensor maps. kWgmma is
// for devices of compute capability 9.0: others have no code for it, and y stays as it was.
absl::Status Gemm(Stream stream, GemmPath path, const GemmInput& x, const DeviceWeight& w,
                  const RowGroups& groups, Epilogue epilogue, DeviceRows y);

// The grid has a block for each so many rows (of a group) at least, and no more blocks than this:
// Gemm ends the process past it.
constexpr int TileRows(GemmPath path, DeviceFormat format) {
  if (format == DeviceFormat::kFloat32) return 32;
  const bool wgmma = format == DeviceFormat::kBfloat16 || format == DeviceFormat::kFp8;
  return path == GemmPath::kWgmma && wgmma ? 128 : 64;
}
inline constexpr int kRowTilesMax = 65535;

// The best path of the current device. Errors: kFailedPrecondition without a device of sm_80 or
// later.
absl::StatusOr<GemmPath> PathOfDevice();

}  // namespace switchyard::cuda
