// common/bf16.h: bfloat16 values and element types.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace switchyard {

// One bfloat16: the upper half of a float32. A storage type; arithmetic is done in float.
struct Bf16 {
  uint16_t bits = 0;
  friend bool operator==(Bf16, Bf16) = default;
};
static_assert(sizeof(Bf16) == 2);

inline float ToFloat(Bf16 v) { return std::bit_cast<float>(uint32_t{v.bits} << 16); }

// Rounds to nearest, ties to even; NaN stays NaN (quiet); infinities and signed zeros are kept.
inline Bf16 ToBf16(float f) {
  uint32_t u = std::bit_cast<uint32_t>(f);
  if ((u & 0x7fffffffu) > 0x7f800000u) return Bf16{static_cast<uint16_t>((u >> 16) | 0x40u)};
  return Bf16{static_cast<uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16)};
}

inline float RoundToBf16(float f) { return ToFloat(ToBf16(f)); }

// Element type of weights, KV and wire payloads. kBfloat16 is also a mode of arithmetic: see
// docs/numerics.md for what is rounded where.
enum class DType : uint8_t { kFloat32 = 0, kBfloat16 = 1 };

constexpr size_t SizeOf(DType t) { return t == DType::kFloat32 ? 4 : 2; }
constexpr std::string_view Name(DType t) { return t == DType::kFloat32 ? "float32" : "bfloat16"; }

}  // namespace switchyard
