#include "model/fp8.h"

#include <algorithm>
#include <array>
#include <bit>
#include <limits>

#include "common/bf16.h"
#include "common/check.h"

namespace switchyard {
namespace {

constexpr std::array<float, 256> MakeTable() {
  std::array<float, 256> table{};
  for (uint32_t bits = 0; bits < 256; ++bits) {
    const uint32_t magnitude = bits & 127;
    // As the upper bits of a float, exponent and mantissa mean the value times 2^(7 - 127), also
    // where it is subnormal.
    const float value = magnitude == 127 ? std::numeric_limits<float>::quiet_NaN()
                                         : std::bit_cast<float>(magnitude << 20) * 0x1p120f;
    table[bits] = bits & 128 ? -value : value;
  }
  return table;
}

constexpr std::array<float, 256> kTable = MakeTable();

}  // namespace

float FromE4m3(std::byte bits) { return kTable[std::to_integer<size_t>(bits)]; }

AlignedBuffer DequantizeFp8(std::span<const std::byte> values, size_t n, size_t k,
                            std::span<const float> scales, const Fp8Blocks& blocks) {
  const size_t rows = blocks.rows, columns = blocks.columns;
  const size_t scale_columns = (k + columns - 1) / columns;
  SY_CHECK_MSG(values.size() == n * k && scales.size() == (n + rows - 1) / rows * scale_columns,
               values.size(), " values and ", scales.size(), " scales");
  AlignedBuffer out(n * k * sizeof(Bf16));
  Bf16* to = reinterpret_cast<Bf16*>(out.data());
  for (size_t r = 0; r < n; ++r) {
    for (size_t begin = 0; begin < k; begin += columns) {
      const float scale = scales[r / rows * scale_columns + begin / columns];
      for (size_t i = r * k + begin; i < r * k + std::min(begin + columns, k); ++i) {
        to[i] = ToBf16(kTable[std::to_integer<size_t>(values[i])] * scale);
      }
    }
  }
  return out;
}

}  // namespace switchyard
