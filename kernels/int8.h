// kernels/int8.h: how numbers become integers of 8 bits, or of 4: in groups of 128 along k, each
// with a scale. Weights when they are packed, activations (8 bits always) when they are multiplied
// (docs/numerics.md). A group's sum of products is an exact 32-bit integer, so that it is the same
// on every machine and in every order.
#pragma once

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>

namespace switchyard {

inline constexpr size_t kInt8Group = 128;
inline constexpr float kInt8Most = 127, kInt4Most = 7;

// The scale of a group whose greatest |x| is `greatest`: a BF16 number, rounded up so that all x /
// scale are in [-most, most]. 0 where a scale would be denormal, NaN where `greatest` is not
// finite.
inline float Int8Scale(float greatest, float most = kInt8Most) {
  if (!std::isfinite(greatest)) return std::bit_cast<float>(0x7fc00000u);
  const float scale =
      std::bit_cast<float>((std::bit_cast<uint32_t>(greatest / most) + 0xffffu) & 0xffff0000u);
  return std::isnormal(scale) ? scale : 0.0f;
}

// What x is multiplied with before it is rounded to the nearest integer, ties to even.
inline float Int8Factor(float scale) { return scale > 0 ? 1.0f / scale : 0.0f; }

// One group, n in [1, 128], the slow and obvious way. A group with a NaN or an infinity is all 0
// with the scale NaN.
inline float QuantizeInt8(const float* x, size_t n, int8_t* out, float most = kInt8Most) {
  float greatest = 0;
  for (size_t i = 0; i < n; ++i) {
    if (!(std::abs(x[i]) <= greatest)) greatest = std::abs(x[i]);
    if (std::isnan(greatest)) break;
  }
  const float scale = Int8Scale(greatest, most), factor = Int8Factor(scale);
  for (size_t i = 0; i < n; ++i) {
    out[i] = factor > 0 ? static_cast<int8_t>(std::lrint(x[i] * factor)) : int8_t{0};
  }
  return scale;
}

}  // namespace switchyard
