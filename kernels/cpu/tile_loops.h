// kernels/cpu/tile_loops.h: Isa::tile over the registers of one vec_*.h.
#pragma once

#include "kernels/cpu/group_loops.h"
#include "kernels/cpu/isa.h"

namespace switchyard::cpu {
namespace {

template <int kRows, int kVectors>
struct Accumulators {
  F v[kRows][kVectors];
};

// acc += a_s · b_s for all units s. The order of k is the same for every shape of tile.
template <TileKind kind, int kRows, int kVectors>
inline __attribute__((always_inline)) void Chain(const GemmTile& t,
                                                 Accumulators<kRows, kVectors>& acc) {
  const unsigned char* a = static_cast<const unsigned char*>(t.a);
  const size_t stride = t.a_stride;
  const uint32_t* b = t.b;
  for (size_t s = 0; s < t.steps; ++s, b += t.b_stride) {
    if constexpr (kind == kTileFloat) {
      F right[kVectors];
#pragma GCC unroll 4
      for (int j = 0; j < kVectors; ++j) right[j] = AsFloat(LoadUnits(b + j * kLanes));
#pragma GCC unroll 6
      for (int r = 0; r < kRows; ++r) {
        const F left = Set(reinterpret_cast<const float*>(a + r * stride)[s]);
#pragma GCC unroll 4
        for (int j = 0; j < kVectors; ++j) acc.v[r][j] = Fma(left, right[j], acc.v[r][j]);
      }
    } else if constexpr (kind == kTileWiden) {
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half) {
        F right[kVectors];
#pragma GCC unroll 4
        for (int j = 0; j < kVectors; ++j) {
          const I units = LoadUnits(b + j * kLanes);
          right[j] = half == 0 ? LowHalf(units) : HighHalf(units);
        }
#pragma GCC unroll 6
        for (int r = 0; r < kRows; ++r) {
          const F left = Set(reinterpret_cast<const float*>(a + r * stride)[2 * s + half]);
#pragma GCC unroll 4
          for (int j = 0; j < kVectors; ++j) acc.v[r][j] = Fma(left, right[j], acc.v[r][j]);
        }
      }
    } else {
#ifdef __AVX512BF16__
      I right[kVectors];
#pragma GCC unroll 4
      for (int j = 0; j < kVectors; ++j) right[j] = LoadUnits(b + j * kLanes);
#pragma GCC unroll 6
      for (int r = 0; r < kRows; ++r) {
        const I left = SetUnit(reinterpret_cast<const uint32_t*>(a + r * stride)[s]);
#pragma GCC unroll 4
        for (int j = 0; j < kVectors; ++j) {
          acc.v[r][j] = _mm512_dpbf16_ps(acc.v[r][j], (__m512bh)left, (__m512bh)right[j]);
        }
      }
#endif
    }
  }
}

template <TileKind kind, int kRows, int kVectors>
void RunTile(const GemmTile& t) {
  if constexpr (IsInteger(kind)) {
    constexpr size_t kUnits = IsInt4(kind) ? kInt4Units : kInt8Units;
    constexpr size_t kLeftGroup = (kInt8Units + 1) * (IsVnni(kind) ? 4 : 8);
    const auto* a = static_cast<const unsigned char*>(t.a);
    for (size_t s = 0; s < t.steps; s += kUnits + 1, a += kLeftGroup) {
      const size_t rest = t.steps - s - 1;
      Group<kind, kRows, kVectors>(a, t.a_stride, t.b + s * t.b_stride, t.b_stride,
                                   rest < kUnits ? rest : kUnits, t.c, t.c_stride,
                                   t.accumulate || s > 0);
    }
    return;
  }
  Accumulators<kRows, kVectors> acc;
#pragma GCC unroll 6
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) {
      acc.v[r][j] = t.accumulate ? Load(t.c + r * t.c_stride + j * kLanes) : Set(0.0f);
    }
  }
  Chain<kind, kRows, kVectors>(t, acc);
#pragma GCC unroll 6
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) Store(t.c + r * t.c_stride + j * kLanes, acc.v[r][j]);
  }
}

template <TileKind kind, int kVectors>
void ByRows(const GemmTile& t) {
  switch (t.rows) {
    case 1:
      return RunTile<kind, 1, kVectors>(t);
    case 2:
      return RunTile<kind, 2, kVectors>(t);
    case 3:
      return RunTile<kind, 3, kVectors>(t);
    case 4:
      return RunTile<kind, 4, kVectors>(t);
    case 5:
      return RunTile<kind, 5, kVectors>(t);
    default:
      return RunTile<kind, 6, kVectors>(t);
  }
}

template <TileKind kind>
void Tile(const GemmTile& t) {
  if constexpr (kTileVectors == 4) {
    if (t.vectors == 4) return ByRows<kind, kTileVectors>(t);
    if (t.vectors == 3) return ByRows<kind, 3>(t);
  }
  return t.vectors == 2 ? ByRows<kind, 2>(t) : ByRows<kind, 1>(t);
}

}  // namespace
}  // namespace switchyard::cpu
