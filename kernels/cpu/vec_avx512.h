// kernels/cpu/vec_avx512.h: 16 floats in a register. Included by the AVX-512 tables only.
#pragma once

#include <immintrin.h>

#include "kernels/cpu/isa.h"

namespace switchyard::cpu {
namespace {

constexpr int kLanes = 16;
constexpr int kTileVectors = 4;  // 6 · 4 accumulators, 4 of b: 28 of 32 registers

using F = __m512;
using I = __m512i;

inline __mmask16 First(int n) { return static_cast<__mmask16>((1u << n) - 1); }

inline F Set(float f) { return _mm512_set1_ps(f); }
inline I SetUnit(uint32_t u) { return _mm512_set1_epi32(static_cast<int>(u)); }
inline F Load(const float* p) { return _mm512_loadu_ps(p); }
inline I LoadUnits(const void* p) { return _mm512_loadu_si512(p); }
inline void Store(float* p, F v) { _mm512_storeu_ps(p, v); }
inline void StreamUnits(void* p, I v) { _mm512_stream_si512(static_cast<I*>(p), v); }
// The first n of a register, n <= kLanes; the others are 0 and their memory is not touched.
inline F LoadFirst(const float* p, int n) { return _mm512_maskz_loadu_ps(First(n), p); }
inline void StoreFirst(float* p, F v, int n) { _mm512_mask_storeu_ps(p, First(n), v); }
inline I LoadHalvesFirst(const uint16_t* p, int n) {
  return _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(First(n), p));
}
inline void StoreHalvesFirst(uint16_t* p, I v, int n) {
  _mm256_mask_storeu_epi16(p, First(n), _mm512_cvtepi32_epi16(v));
}
#ifdef __AVX512VNNI__
inline void StoreBytesFirst(uint8_t* p, I v, int n) {
  _mm_mask_storeu_epi8(p, First(n), _mm512_cvtepi32_epi8(v));
}
#endif
// Lanes from n on become `fill`.
inline F KeepFirst(F v, int n, F fill) { return _mm512_mask_mov_ps(fill, First(n), v); }

inline F Fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
inline F Add(F a, F b) { return _mm512_add_ps(a, b); }
inline F Sub(F a, F b) { return _mm512_sub_ps(a, b); }
inline F Mul(F a, F b) { return _mm512_mul_ps(a, b); }
inline F Div(F a, F b) { return _mm512_div_ps(a, b); }
// b if either is NaN.
inline F Max(F a, F b) { return _mm512_max_ps(a, b); }
inline F Min(F a, F b) { return _mm512_min_ps(a, b); }
inline F RoundToInt(F a) { return _mm512_roundscale_ps(a, 0); }
inline I ToInt(F a) { return _mm512_cvtps_epi32(a); }

inline I AddI(I a, I b) { return _mm512_add_epi32(a, b); }
inline I SubI(I a, I b) { return _mm512_sub_epi32(a, b); }
inline I AndI(I a, I b) { return _mm512_and_si512(a, b); }
template <int n>
inline I ShiftLeft(I a) {
  return _mm512_slli_epi32(a, n);
}
template <int n>
inline I ShiftRight(I a) {
  return _mm512_srli_epi32(a, n);
}
template <int n>
inline I ShiftRightSigned(I a) {
  return _mm512_srai_epi32(a, n);
}
inline I MaxI(I a, I b) { return _mm512_max_epi32(a, b); }
// Of 16-bit halves; MultiplyHalves adds the two products of a lane.
template <int n>
inline I ShiftHalvesLeft(I a) {
  return _mm512_slli_epi16(a, n);
}
template <int n>
inline I ShiftHalvesRightSigned(I a) {
  return _mm512_srai_epi16(a, n);
}
inline I MultiplyHalves(I a, I b) { return _mm512_madd_epi16(a, b); }
inline F FromInt(I a) { return _mm512_cvtepi32_ps(a); }
inline F AsFloat(I a) { return _mm512_castsi512_ps(a); }
inline I AsInt(F a) { return _mm512_castps_si512(a); }
// nan where f is NaN, else a.
inline I WhereNan(F f, I nan, I a) {
  return _mm512_mask_mov_epi32(a, _mm512_cmp_ps_mask(f, f, _CMP_UNORD_Q), nan);
}

// Lanes in a fixed tree: i with i + 8, then + 4, + 2, + 1.
inline float Sum(F v) {
  const __m256 a = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
  __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  b = _mm_add_ps(b, _mm_movehl_ps(b, b));
  return _mm_cvtss_f32(_mm_add_ss(b, _mm_movehdup_ps(b)));
}
inline float MaxOf(F v) { return _mm512_reduce_max_ps(v); }

// out[j·kSubBlock + i] = unit j of row i, for kLanes rows and the first `units` of them.
inline void TransposeSquare(const unsigned char* const* rows, size_t offset, int units,
                            uint32_t* out) {
  I a[16], b[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) {
    a[i] = _mm512_maskz_loadu_epi32(First(units), rows[i] + offset);
  }
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]);
    b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
  }
  // a[4g + j]: column j of every 128-bit lane, rows 4g … 4g + 3.
#pragma GCC unroll 4
  for (int g = 0; g < 16; g += 4) {
    a[g] = _mm512_unpacklo_epi64(b[g], b[g + 2]);
    a[g + 1] = _mm512_unpackhi_epi64(b[g], b[g + 2]);
    a[g + 2] = _mm512_unpacklo_epi64(b[g + 1], b[g + 3]);
    a[g + 3] = _mm512_unpackhi_epi64(b[g + 1], b[g + 3]);
  }
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const I low02 = _mm512_shuffle_i32x4(a[j], a[4 + j], 0x88);  // lanes 0, 2
    const I high02 = _mm512_shuffle_i32x4(a[8 + j], a[12 + j], 0x88);
    const I low13 = _mm512_shuffle_i32x4(a[j], a[4 + j], 0xdd);  // lanes 1, 3
    const I high13 = _mm512_shuffle_i32x4(a[8 + j], a[12 + j], 0xdd);
    b[j] = _mm512_shuffle_i32x4(low02, high02, 0x88);
    b[8 + j] = _mm512_shuffle_i32x4(low02, high02, 0xdd);
    b[4 + j] = _mm512_shuffle_i32x4(low13, high13, 0x88);
    b[12 + j] = _mm512_shuffle_i32x4(low13, high13, 0xdd);
  }
#pragma GCC unroll 16
  for (int j = 0; j < 16; ++j) {
    if (j < units) _mm512_storeu_si512(out + j * kSubBlock, b[j]);
  }
}

}  // namespace
}  // namespace switchyard::cpu
