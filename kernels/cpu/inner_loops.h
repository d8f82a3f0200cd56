// kernels/cpu/inner_loops.h: the functions of isa.h over the registers of one vec_*.h. Each table's
// file includes its vec_*.h, then this, once.
#pragma once

#include "kernels/cpu/isa.h"
#include "kernels/cpu/peak_loops.h"
#include "kernels/cpu/tile_loops.h"

namespace switchyard::cpu {
namespace {

// Calls body(i, n) for i = 0, kLanes, …: n is kLanes, less for the last.
template <typename Body>
inline __attribute__((always_inline)) void ForEachVector(size_t count, Body body) {
  size_t i = 0;
  for (; i + kLanes <= count; i += kLanes) body(i, kLanes);
  if (i < count) body(i, static_cast<int>(count - i));
}

// ---- Rounding ----

// The upper half of each lane holds the BF16 after rounding to nearest even; the lower is rubbish.
inline I RoundUpper(F f) {
  const I u = AsInt(f);
  const I odd = AndI(ShiftRight<16>(u), SetUnit(1));
  const I rounded = AddI(AddI(u, SetUnit(0x7fff)), odd);
  const I quiet = AsInt(Add(f, f));  // of a NaN: the same, quiet
  return WhereNan(f, quiet, rounded);
}

void ToBf16(const float* in, size_t n, uint16_t* out) {
  ForEachVector(n, [&](size_t i, int m) {
    StoreHalvesFirst(out + i, ShiftRight<16>(RoundUpper(LoadFirst(in + i, m))), m);
  });
}

void RoundToBf16(const float* in, size_t n, float* out) {
  ForEachVector(n, [&](size_t i, int m) {
    StoreFirst(out + i, HighHalf(RoundUpper(LoadFirst(in + i, m))), m);
  });
}

void Widen(const uint16_t* in, size_t n, float* out) {
  ForEachVector(
      n, [&](size_t i, int m) { StoreFirst(out + i, LowHalf(LoadHalvesFirst(in + i, m)), m); });
}

// ---- 8-bit integers ----

// The bits of floats without their sign order as they do, and NaNs come last.
uint32_t Greatest(const float* x, size_t n) {
  I most = SetUnit(0);
  ForEachVector(n, [&](size_t i, int m) {
    most = MaxI(most, AndI(AsInt(LoadFirst(x + i, m)), SetUnit(0x7fffffffu)));
  });
  uint32_t lanes[kLanes], greatest = 0;
  __builtin_memcpy(lanes, &most, sizeof(lanes));
  for (const uint32_t bits : lanes) greatest = bits > greatest ? bits : greatest;
  return greatest;
}

void Quantize(const float* x, size_t n, float factor, void* out) {
  ForEachVector(n, [&](size_t i, int m) {
    const I q = ToInt(Mul(LoadFirst(x + i, m), Set(factor)));
#ifdef __AVX512VNNI__
    StoreBytesFirst(static_cast<uint8_t*>(out) + i, AddI(q, SetUnit(128)), m);
#else
    StoreHalvesFirst(static_cast<uint16_t*>(out) + i, AndI(q, SetUnit(0xffff)), m);
#endif
  });
}

// ---- Elementwise ----

// e^x to about 1 ulp: x = n·ln 2 + r (ln 2 in two parts, Cody & Waite), a Taylor polynomial for
// |r| <= ln 2 / 2 (its first missing term is below 2^-27), and 2^n in two factors, so that results
// may be denormal, 0 or infinite. exp(0) is 1.
inline F Exp(F x) {
  x = Max(Set(-110.0f), Min(Set(90.0f), x));  // the second operand: a NaN stays
  const F n = RoundToInt(Mul(x, Set(1.44269504f)));
  F r = Fma(n, Set(-0.693359375f), x);
  r = Fma(n, Set(2.12194440e-4f), r);
  F p = Set(1.0f / 5040);
  p = Fma(p, r, Set(1.0f / 720));
  p = Fma(p, r, Set(1.0f / 120));
  p = Fma(p, r, Set(1.0f / 24));
  p = Fma(p, r, Set(1.0f / 6));
  p = Fma(p, r, Set(0.5f));
  p = Fma(Mul(r, r), p, Add(r, Set(1.0f)));
  const I whole = ToInt(n), half = ShiftRightSigned<1>(whole), bias = SetUnit(127);
  const F first = AsFloat(ShiftLeft<23>(AddI(half, bias)));
  const F second = AsFloat(ShiftLeft<23>(AddI(SubI(whole, half), bias)));
  return Mul(Mul(p, first), second);
}

float ExpOne(float x) {
  float out;
  StoreFirst(&out, Exp(Set(x)), 1);
  return out;
}

void SiluMul(const float* gate, const float* up, size_t n, float* out) {
  const F one = Set(1.0f);
  ForEachVector(n, [&](size_t i, int m) {
    const F g = LoadFirst(gate + i, m);
    const F silu = Div(g, Add(one, Exp(Sub(Set(0.0f), g))));
    StoreFirst(out + i, Mul(silu, LoadFirst(up + i, m)), m);
  });
}

void Scale(float* x, size_t n, float factor) {
  ForEachVector(
      n, [&](size_t i, int m) { StoreFirst(x + i, Mul(LoadFirst(x + i, m), Set(factor)), m); });
}

void Merge(float* x, float x_factor, const float* y, float y_factor, size_t n) {
  ForEachVector(n, [&](size_t i, int m) {
    const F scaled = Mul(LoadFirst(y + i, m), Set(y_factor));
    StoreFirst(x + i, Fma(LoadFirst(x + i, m), Set(x_factor), scaled), m);
  });
}

// Four chains of registers, then a fixed tree.
float SumSquares(const float* x, size_t n) {
  F sums[4] = {Set(0.0f), Set(0.0f), Set(0.0f), Set(0.0f)};
  size_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes) {
    for (int j = 0; j < 4; ++j) {
      const F v = Load(x + i + j * kLanes);
      sums[j] = Fma(v, v, sums[j]);
    }
  }
  ForEachVector(n - i, [&](size_t j, int m) {
    const F v = LoadFirst(x + i + j, m);
    sums[0] = Fma(v, v, sums[0]);
  });
  return Sum(Add(Add(sums[0], sums[1]), Add(sums[2], sums[3])));
}

void Norm(const float* x, float factor, const float* weight, size_t n, float* y) {
  ForEachVector(n, [&](size_t i, int m) {
    const F scaled = Mul(LoadFirst(x + i, m), Set(factor));
    StoreFirst(y + i, Mul(scaled, LoadFirst(weight + i, m)), m);
  });
}

// ---- Attention ----

void Transpose(const unsigned char* const* rows, size_t units, uint32_t* out) {
  ForEachVector(units, [&](size_t i, int m) {
    TransposeSquare(rows, i * sizeof(uint32_t), m, out + i * kSubBlock);
  });
}

void Pair(const unsigned char* even, const unsigned char* odd, size_t n, uint32_t* out) {
  const auto* low = reinterpret_cast<const uint16_t*>(even);
  const auto* high = reinterpret_cast<const uint16_t*>(odd);
  ForEachVector(n, [&](size_t i, int m) {
    const I units = AddI(LoadHalvesFirst(low + i, m), ShiftLeft<16>(LoadHalvesFirst(high + i, m)));
    StoreFirst(reinterpret_cast<float*>(out + i), AsFloat(units), m);
  });
}

float SoftmaxStep(float* s, int n, float scale, float* max, float* sum) {
  const F lowest = Set(-__builtin_inff());
  F highest = lowest;
  for (int i = 0; i < kSubBlock; i += kLanes) {
    const int valid = n - i < 0 ? 0 : n - i > kLanes ? kLanes : n - i;
    const F v = KeepFirst(Mul(Load(s + i), Set(scale)), valid, lowest);
    Store(s + i, v);
    highest = Max(v, highest);
  }
  const float step_max = MaxOf(highest), old_max = *max;
  const float new_max = step_max > old_max ? step_max : old_max;
  F total = Set(0.0f);
  for (int i = 0; i < kSubBlock; i += kLanes) {
    const F e = Exp(Sub(Load(s + i), Set(new_max)));
    Store(s + i, e);
    total = Add(total, e);
  }
  const float factor = old_max == new_max ? 1.0f : ExpOne(old_max - new_max);
  *max = new_max;
  *sum = *sum * factor + Sum(total);
  return factor;
}

}  // namespace
}  // namespace switchyard::cpu

// The members of Isa after `vnni`, in order.
#define SY_INNER_LOOPS(dot_tile, dot_peak, int8_tile, int8_peak, int4_tile)                      \
  {Tile<kTileFloat>, Tile<kTileWiden>,    dot_tile, int8_tile, Tile<kTileInt8Widen>,             \
   int4_tile,        Tile<kTileInt4Widen>},                                                      \
      ToBf16, RoundToBf16, Widen, Greatest, Quantize, SiluMul, Scale, Merge, ExpOne, SumSquares, \
      Norm, Transpose, Pair, SoftmaxStep, {                                                      \
    {Peak<kTileFloat>, Peak<kTileFloat>, dot_peak, int8_peak}, Read, CopyPastCache               \
  }
