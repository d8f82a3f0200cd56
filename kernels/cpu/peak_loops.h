// kernels/cpu/peak_loops.h: Isa::peaks over the registers of one vec_*.h: loops that do nothing but
// what one unit of the machine can do at most, so that a kernel's speed has something to be held
// against.
#pragma once

#include "kernels/cpu/isa.h"
#include "kernels/cpu/tile_loops.h"

namespace switchyard::cpu {
namespace {

// As many independent chains as a register tile has: more than latency times throughput of any
// multiply-add there is.
constexpr int kPeakChains = kTileRows * kTileVectors;
static_assert(kPeakChains * kLanes <= kPeakOutputsMax);

template <TileKind kind>
void Peak(size_t rounds, float* out) {
  Accumulators<kTileRows, kTileVectors> acc;
  F* chains = &acc.v[0][0];
#pragma GCC unroll 24
  for (int i = 0; i < kPeakChains; ++i) chains[i] = Set(0.0f);
  const F one = Load(out), other = Load(out + kLanes);
  for (size_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 24
    for (int i = 0; i < kPeakChains; ++i) {
      if constexpr (kind == kTileInt8) {
#ifdef __AVX512VNNI__
        chains[i] = AsFloat(_mm512_dpbusd_epi32(AsInt(chains[i]), AsInt(one), AsInt(other)));
#endif
      } else if constexpr (kind == kTileDot) {
#ifdef __AVX512BF16__
        chains[i] = _mm512_dpbf16_ps(chains[i], (__m512bh)AsInt(one), (__m512bh)AsInt(other));
#endif
      } else {
        chains[i] = Fma(one, other, chains[i]);
      }
      // Opaque to the optimiser, which would otherwise see through the loop.
      asm volatile("" : "+x"(chains[i]));
    }
  }
#pragma GCC unroll 24
  for (int i = 0; i < kPeakChains; ++i) Store(out + i * kLanes, chains[i]);
}

// Fetches ahead, as register tiles do: the hardware's prefetcher alone reads less.
uint32_t Read(const void* from, size_t bytes) {
  constexpr size_t kLine = 64, kStep = 4 * kLine, kAhead = 32 * kStep;
  const char* p = static_cast<const char*>(from);
  I sums[4] = {SetUnit(0), SetUnit(0), SetUnit(0), SetUnit(0)};
  for (size_t i = 0; i + kStep <= bytes; i += kStep) {
    for (size_t line = 0; line < 4; ++line) {
      __builtin_prefetch(p + i + kAhead + line * kLine, 0, 2);
      for (size_t at = 0; at < kLine; at += sizeof(I)) {
        sums[line] = AddI(sums[line], LoadUnits(p + i + line * kLine + at));
      }
    }
  }
  float out[kLanes];
  Store(out, AsFloat(AddI(AddI(sums[0], sums[1]), AddI(sums[2], sums[3]))));
  uint32_t first;
  __builtin_memcpy(&first, out, sizeof(first));
  return first;
}

void CopyPastCache(const void* from, void* to, size_t bytes) {
  const char* p = static_cast<const char*>(from);
  char* q = static_cast<char*>(to);
  for (size_t i = 0; i + 256 <= bytes; i += 256) {
    for (size_t at = 0; at < 256; at += sizeof(I)) StreamUnits(q + i + at, LoadUnits(p + i + at));
  }
  _mm_sfence();
}

}  // namespace
}  // namespace switchyard::cpu
