// kernels/cpu/vec_avx2.h: 8 floats in a register. Included by the AVX2 table only.
#pragma once

#include <immintrin.h>

#include "kernels/cpu/isa.h"

namespace switchyard::cpu {
namespace {

constexpr int kLanes = 8;
constexpr int kTileVectors = 2;  // 6 · 2 accumulators, 2 of b, 1 of a: 15 of 16 registers

using F = __m256;
using I = __m256i;

inline I First(int n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

inline F Set(float f) { return _mm256_set1_ps(f); }
inline I SetUnit(uint32_t u) { return _mm256_set1_epi32(static_cast<int>(u)); }
inline F Load(const float* p) { return _mm256_loadu_ps(p); }
inline I LoadUnits(const void* p) { return _mm256_loadu_si256(static_cast<const I*>(p)); }
inline void Store(float* p, F v) { _mm256_storeu_ps(p, v); }
inline void StreamUnits(void* p, I v) { _mm256_stream_si256(static_cast<I*>(p), v); }
// The first n of a register, n <= kLanes; the others are 0 and their memory is not touched.
inline F LoadFirst(const float* p, int n) { return _mm256_maskload_ps(p, First(n)); }
inline void StoreFirst(float* p, F v, int n) { _mm256_maskstore_ps(p, First(n), v); }
inline I LoadHalvesFirst(const uint16_t* p, int n) {
  alignas(16) uint16_t halves[kLanes] = {};
  __builtin_memcpy(halves, p, n * sizeof(uint16_t));
  return _mm256_cvtepu16_epi32(_mm_load_si128(reinterpret_cast<const __m128i*>(halves)));
}
inline void StoreHalvesFirst(uint16_t* p, I v, int n) {
  alignas(16) uint16_t halves[kLanes];
  _mm_store_si128(reinterpret_cast<__m128i*>(halves),
                  _mm_packus_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1)));
  __builtin_memcpy(p, halves, n * sizeof(uint16_t));
}
// Lanes from n on become `fill`.
inline F KeepFirst(F v, int n, F fill) {
  return _mm256_blendv_ps(fill, v, _mm256_castsi256_ps(First(n)));
}

inline F Fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
inline F Add(F a, F b) { return _mm256_add_ps(a, b); }
inline F Sub(F a, F b) { return _mm256_sub_ps(a, b); }
inline F Mul(F a, F b) { return _mm256_mul_ps(a, b); }
inline F Div(F a, F b) { return _mm256_div_ps(a, b); }
// b if either is NaN.
inline F Max(F a, F b) { return _mm256_max_ps(a, b); }
inline F Min(F a, F b) { return _mm256_min_ps(a, b); }
inline F RoundToInt(F a) {
  return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
inline I ToInt(F a) { return _mm256_cvtps_epi32(a); }

inline I AddI(I a, I b) { return _mm256_add_epi32(a, b); }
inline I SubI(I a, I b) { return _mm256_sub_epi32(a, b); }
inline I AndI(I a, I b) { return _mm256_and_si256(a, b); }
template <int n>
inline I ShiftLeft(I a) {
  return _mm256_slli_epi32(a, n);
}
template <int n>
inline I ShiftRight(I a) {
  return _mm256_srli_epi32(a, n);
}
template <int n>
inline I ShiftRightSigned(I a) {
  return _mm256_srai_epi32(a, n);
}
inline I MaxI(I a, I b) { return _mm256_max_epi32(a, b); }
// Of 16-bit halves; MultiplyHalves adds the two products of a lane.
template <int n>
inline I ShiftHalvesLeft(I a) {
  return _mm256_slli_epi16(a, n);
}
template <int n>
inline I ShiftHalvesRightSigned(I a) {
  return _mm256_srai_epi16(a, n);
}
inline I MultiplyHalves(I a, I b) { return _mm256_madd_epi16(a, b); }
inline F FromInt(I a) { return _mm256_cvtepi32_ps(a); }
inline F AsFloat(I a) { return _mm256_castsi256_ps(a); }
inline I AsInt(F a) { return _mm256_castps_si256(a); }
// nan where f is NaN, else a.
inline I WhereNan(F f, I nan, I a) {
  return AsInt(_mm256_blendv_ps(AsFloat(a), AsFloat(nan), _mm256_cmp_ps(f, f, _CMP_UNORD_Q)));
}

// Lanes in a fixed tree: i with i + 4, then + 2, + 1.
inline float Sum(F v) {
  __m128 b = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  b = _mm_add_ps(b, _mm_movehl_ps(b, b));
  return _mm_cvtss_f32(_mm_add_ss(b, _mm_movehdup_ps(b)));
}
inline float MaxOf(F v) {
  __m128 b = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  b = _mm_max_ps(b, _mm_movehl_ps(b, b));
  return _mm_cvtss_f32(_mm_max_ss(b, _mm_movehdup_ps(b)));
}

// out[j·kSubBlock + i] = unit j of row i, for kLanes rows and the first `units` of them.
inline void TransposeSquare(const unsigned char* const* rows, size_t offset, int units,
                            uint32_t* out) {
  I a[8], b[8];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    a[i] = _mm256_maskload_epi32(reinterpret_cast<const int*>(rows[i] + offset), First(units));
  }
#pragma GCC unroll 4
  for (int i = 0; i < 8; i += 2) {
    b[i] = _mm256_unpacklo_epi32(a[i], a[i + 1]);
    b[i + 1] = _mm256_unpackhi_epi32(a[i], a[i + 1]);
  }
  // a[4g + j]: column j of both 128-bit lanes, rows 4g … 4g + 3.
#pragma GCC unroll 2
  for (int g = 0; g < 8; g += 4) {
    a[g] = _mm256_unpacklo_epi64(b[g], b[g + 2]);
    a[g + 1] = _mm256_unpackhi_epi64(b[g], b[g + 2]);
    a[g + 2] = _mm256_unpacklo_epi64(b[g + 1], b[g + 3]);
    a[g + 3] = _mm256_unpackhi_epi64(b[g + 1], b[g + 3]);
  }
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    b[j] = _mm256_permute2x128_si256(a[j], a[4 + j], 0x20);
    b[4 + j] = _mm256_permute2x128_si256(a[j], a[4 + j], 0x31);
  }
#pragma GCC unroll 8
  for (int j = 0; j < 8; ++j) {
    if (j < units) _mm256_storeu_si256(reinterpret_cast<I*>(out + j * kSubBlock), b[j]);
  }
}

}  // namespace
}  // namespace switchyard::cpu
