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
                                                 Accumulators<kRows, kVectors>& acc, Ahead ahead) {
  const unsigned char* a = static_cast<const unsigned char*>(t.a);
  const size_t stride = t.a_stride;
  const uint32_t* b = t.b;
  for (size_t s = 0; s < t.steps; ++s, b += t.b_stride, ahead.b += t.b_stride) {
    Fetch<kVectors>(ahead);
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

// What two tiles multiply in turns, and how far ahead they fetch: of integers, a group.
template <TileKind kind>
struct Turn {
  static constexpr size_t kSteps =
      !IsInteger(kind) ? 32 : (IsInt4(kind) ? kInt4Units : kInt8Units) + 1;
  static constexpr size_t kLeftBytes = IsInteger(kind) ? (kInt8Units + 1) * (IsVnni(kind) ? 4 : 8)
                                                       : kSteps * (kind == kTileWiden ? 8 : 4);
};

template <TileKind kind, int kRows, int kVectors>
void RunTile(const GemmTile& t, Share share) {
  constexpr size_t kSteps = Turn<kind>::kSteps;
  const auto ahead = [&](size_t s) { return Ahead{t.b + (s + kSteps) * t.b_stride, share}; };
  if constexpr (IsInteger(kind)) {
    const auto* a = static_cast<const unsigned char*>(t.a);
    for (size_t s = 0; s < t.steps; s += kSteps, a += Turn<kind>::kLeftBytes) {
      const size_t units = (t.steps - s < kSteps ? t.steps - s : kSteps) - 1;
      Group<kind, kRows, kVectors>(a, t.a_stride, t.b + s * t.b_stride, t.b_stride, units, t.c,
                                   t.c_stride, t.accumulate || s > 0, ahead(s));
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
  Chain<kind, kRows, kVectors>(t, acc, ahead(0));
#pragma GCC unroll 6
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) Store(t.c + r * t.c_stride + j * kLanes, acc.v[r][j]);
  }
}

template <TileKind kind, int kVectors>
void ByRows(const GemmTile& t, Share share) {
  switch (t.rows) {
    case 1:
      return RunTile<kind, 1, kVectors>(t, share);
    case 2:
      return RunTile<kind, 2, kVectors>(t, share);
    case 3:
      return RunTile<kind, 3, kVectors>(t, share);
    case 4:
      return RunTile<kind, 4, kVectors>(t, share);
    case 5:
      return RunTile<kind, 5, kVectors>(t, share);
    default:
      return RunTile<kind, 6, kVectors>(t, share);
  }
}

template <TileKind kind>
void ByColumns(const GemmTile& t, Share share) {
  if constexpr (kTileVectors == 4) {
    if (t.vectors == 4) return ByRows<kind, kTileVectors>(t, share);
    if (t.vectors == 3) return ByRows<kind, 3>(t, share);
  }
  return t.vectors == 2 ? ByRows<kind, 2>(t, share) : ByRows<kind, 1>(t, share);
}

// More rows than a register tile has, as two of about the same height in turns: while both
// multiply, memory has time to bring what the next turn wants.
template <TileKind kind>
void InTurns(const GemmTile& t) {
  constexpr size_t kSteps = Turn<kind>::kSteps;
  GemmTile upper = t, lower = t;
  upper.rows = (t.rows + 1) / 2;
  lower.rows = t.rows - upper.rows;
  const size_t lower_a = upper.rows * t.a_stride;
  lower.c = t.c + upper.rows * t.c_stride;
  const auto* a = static_cast<const unsigned char*>(t.a);
  size_t s = 0;
  do {  // without any steps too: c becomes 0
    upper.a = a;
    lower.a = a + lower_a;
    upper.b = lower.b = t.b + s * t.b_stride;
    upper.steps = lower.steps = t.steps - s < kSteps ? t.steps - s : kSteps;
    upper.accumulate = lower.accumulate = t.accumulate || s > 0;
    ByColumns<kind>(upper, t.ahead ? Share::kFirstHalf : Share::kNone);
    ByColumns<kind>(lower, t.ahead ? Share::kSecondHalf : Share::kNone);
    s += kSteps;
    a += Turn<kind>::kLeftBytes;
  } while (s < t.steps);
}

template <TileKind kind>
void Tile(const GemmTile& t) {
  if (t.rows > kTileRows) return InTurns<kind>(t);
  ByColumns<kind>(t, t.ahead ? Share::kAll : Share::kNone);
}

}  // namespace
}  // namespace switchyard::cpu
