// kernels/cpu/group_loops.h: products of groups of integers, over the registers of one vec_*.h.
#pragma once

#include "kernels/cpu/isa.h"

namespace switchyard::cpu {
namespace {

// The two BF16 of each unit, as floats.
inline F LowHalf(I units) { return AsFloat(ShiftLeft<16>(units)); }
inline F HighHalf(I units) { return AsFloat(AndI(units, SetUnit(0xffff0000u))); }

// sums += products of one unit of a (four integers of each row) and of b.
template <bool kVnni, int kRows, int kVectors>
inline __attribute__((always_inline)) void MultiplyUnit(const unsigned char* a, size_t stride,
                                                        const I (&of_b)[kVectors],
                                                        I (&sums)[kRows][kVectors]) {
  if constexpr (kVnni) {
#ifdef __AVX512VNNI__
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r) {
      const I of_a = SetUnit(*reinterpret_cast<const uint32_t*>(a + r * stride));
#pragma GCC unroll 4
      for (int j = 0; j < kVectors; ++j) {
        // GCC 12 copies each sum before the intrinsic and spills: 1.5 times slower.
        asm("vpdpbusd %2, %1, %0" : "+v"(sums[r][j]) : "v"(of_a), "v"(of_b[j]));
      }
    }
#endif
  } else {
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) {
      const I even = ShiftHalvesRightSigned<8>(ShiftHalvesLeft<8>(of_b[j]));
      const I odd = ShiftHalvesRightSigned<8>(of_b[j]);
#pragma GCC unroll 6
      for (int r = 0; r < kRows; ++r) {
        const auto* pairs = reinterpret_cast<const uint32_t*>(a + r * stride);
        const I first = MultiplyHalves(SetUnit(pairs[0]), even);
        sums[r][j] = AddI(sums[r][j], AddI(first, MultiplyHalves(SetUnit(pairs[1]), odd)));
      }
    }
  }
}

constexpr bool IsVnni(TileKind k) { return k == kTileInt8 || k == kTileInt4; }
constexpr bool IsInt4(TileKind k) { return k == kTileInt4 || k == kTileInt4Widen; }
constexpr bool IsInteger(TileKind k) { return k >= kTileInt8; }

// The units of b that are fetched from memory while others are multiplied, one beside each: all
// lines of a unit, or half of them since another tile fetches the others, or none. The hardware's
// prefetcher follows loads, and those come no faster than the arithmetic between them: without
// this, both times would add up.
enum class Share { kNone, kFirstHalf, kSecondHalf, kAll };
struct Ahead {
  const uint32_t* b;
  Share share;
};

constexpr int kLineUnits = 16;  // units of 4 bytes in a line of the cache

// Into the second-level cache: into the first is slower where there are several rows.
template <int kVectors>
inline __attribute__((always_inline)) void Fetch(const Ahead& ahead) {
  constexpr int kLines = (kVectors * kLanes + kLineUnits - 1) / kLineUnits;
  constexpr int kHalf = (kLines + 1) / 2;
  if (ahead.share == Share::kNone) return;
  if (ahead.share != Share::kSecondHalf) {
#pragma GCC unroll 2
    for (int i = 0; i < kHalf; ++i) __builtin_prefetch(ahead.b + i * kLineUnits, 0, 2);
  }
  if (ahead.share != Share::kFirstHalf) {
#pragma GCC unroll 2
    for (int i = kHalf; i < kLines; ++i) __builtin_prefetch(ahead.b + i * kLineUnits, 0, 2);
  }
}

// c += the sum of one group's products · both scales. The integers' sums stay in registers for a
// group, c in the cache. `units` of b; `ahead` is fetched meanwhile.
template <TileKind kind, int kRows, int kVectors>
inline __attribute__((always_inline)) void Group(const unsigned char* a, size_t stride,
                                                 const uint32_t* b, size_t b_stride, size_t units,
                                                 float* c, size_t c_stride, bool accumulate,
                                                 Ahead ahead) {
  constexpr size_t kUnit = IsVnni(kind) ? 4 : 8;  // bytes of a's
  I sums[kRows][kVectors], of_b[kVectors];
#pragma GCC unroll 4
  for (int j = 0; j < kVectors; ++j) {
    I start = SetUnit(0);
    if constexpr (IsVnni(kind)) {  // takes back the 128 of each of a's integers
      const I sum = ShiftRightSigned<16>(ShiftLeft<16>(LoadUnits(b + j * kLanes)));
      constexpr int kZeroPoint = IsInt4(kind) ? 11 : 7;
      start = SubI(start, ShiftLeft<kZeroPoint>(sum));
    }
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r) sums[r][j] = start;
  }
  const unsigned char* left = a + kUnit;
  const uint32_t* right = b + b_stride;
  for (size_t u = 0; u < units; ++u, left += kUnit, right += b_stride, ahead.b += b_stride) {
    Fetch<kVectors>(ahead);
    if constexpr (!IsInt4(kind)) {
#pragma GCC unroll 4
      for (int j = 0; j < kVectors; ++j) of_b[j] = LoadUnits(right + j * kLanes);
      MultiplyUnit<IsVnni(kind)>(left, stride, of_b, sums);
    } else {
      // Four bits in the upper half of a byte are 16 times the integer, with its sign.
      const I upper = SetUnit(0xf0f0f0f0u);
#pragma GCC unroll 4
      for (int j = 0; j < kVectors; ++j) {
        of_b[j] = AndI(ShiftLeft<4>(LoadUnits(right + j * kLanes)), upper);
      }
      MultiplyUnit<IsVnni(kind)>(left, stride, of_b, sums);
      left += kUnit;
#pragma GCC unroll 4
      for (int j = 0; j < kVectors; ++j) of_b[j] = AndI(LoadUnits(right + j * kLanes), upper);
      MultiplyUnit<IsVnni(kind)>(left, stride, of_b, sums);
    }
  }
  Fetch<kVectors>(ahead);  // a group has one unit more than its integers, the scales
#pragma GCC unroll 4
  for (int j = 0; j < kVectors; ++j) {
    const F scale = HighHalf(LoadUnits(b + j * kLanes));
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r) {
      float* to = c + r * c_stride + j * kLanes;
      const F before = accumulate ? Load(to) : Set(0.0f);
      const F both = Mul(Set(*reinterpret_cast<const float*>(a + r * stride)), scale);
      const I exact = IsInt4(kind) ? ShiftRightSigned<4>(sums[r][j]) : sums[r][j];
      Store(to, Fma(FromInt(exact), both, before));
    }
  }
}

}  // namespace
}  // namespace switchyard::cpu
