// kernels/cuda/fp8.h: E4M3 (OCP 8-bit floating point, 2023): 4 bits of exponent, bias 7, 3 of
// mantissa, no infinities, NaN 0x7f. In integers, so that every device and the host agree to the
// bit. Every E4M3 is a BF16.
#pragma once

#include "kernels/cuda/device.h"

namespace switchyard::cuda {

// To nearest, ties to even, saturated to ±448; NaN stays.
__device__ __forceinline__ uint8_t ToE4m3(float f) {
  const uint32_t u = std::bit_cast<uint32_t>(f), magnitude = u & 0x7fffffffu;
  const uint32_t sign = (u >> 24) & 0x80u;
  if (magnitude > 0x7f800000u) return static_cast<uint8_t>(sign | 0x7fu);
  if (magnitude >= 0x43e00000u) return static_cast<uint8_t>(sign | 0x7eu);  // 448
  if (magnitude < 0x3c800000u) {
    // Below 2^-6: multiples of 2^-9; 8 of them carry into the exponent as they should.
    const float steps = rintf(std::bit_cast<float>(magnitude) * 512.0f);
    return static_cast<uint8_t>(sign | static_cast<uint32_t>(steps));
  }
  const uint32_t rounded = magnitude + 0x7ffffu + ((magnitude >> 20) & 1u);
  const uint32_t value = (rounded >> 20) - ((127u - 7u) << 3);
  return static_cast<uint8_t>(sign | (value > 0x7eu ? 0x7eu : value));
}

__device__ __forceinline__ float FromE4m3(uint8_t v) {
  const uint32_t sign = (v & 0x80u) << 24, magnitude = v & 0x7fu;
  if (magnitude == 0x7fu) return std::bit_cast<float>(sign | 0x7fc00000u);
  // As FP32 the exponent's bias is 120 more, also of numbers below 2^-6, which are FP32's smallest.
  return std::bit_cast<float>(
      sign | std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude << 20) * 0x1p120f));
}

}  // namespace switchyard::cuda
