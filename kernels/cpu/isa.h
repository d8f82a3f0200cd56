// kernels/cpu/isa.h: the inner loops, one table of functions for each instruction set.
//
// The files that define the tables (avx2.cc, avx512*.cc) are compiled for CPUs that may not be
// there. They include this header and the compiler's intrinsics alone and define everything else in
// an anonymous namespace: were they to instantiate a template or an inline function that others use
// too, the linker could pick their copy for all. So this header holds plain data only, and threads,
// memory and views stay in the files that are compiled for any CPU.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace switchyard::cpu {

constexpr int kTileRows = 6;              // rows of a register tile
constexpr int kPassRows = 2 * kTileRows;  // rows that go over a panel at once
constexpr int kSubBlock = 64;             // keys of one step of the online softmax

// How a tile multiplies. A unit of b is 32 bits: one float, the BF16 of k = 2s (low) and 2s + 1, or
// integers. Those come in groups: a unit with the group's scale (upper half, as BF16) and the sum
// of its integers (lower half, signed), then up to kInt8Units of four 8-bit or kInt4Units of eight
// 4-bit integers; in a, which has 8 bits or more always, the scale as a float, then the units.
enum TileKind {
  kTileFloat = 0,  // a: floats, b: floats; unit s is k = s
  kTileWiden = 1,  // a: floats (the caller rounded them if it must), b: BF16 pairs
  kTileDot = 2,    // a: BF16 pairs, b: BF16 pairs, products summed by the BF16 dot instruction
  kTileInt8 = 3,   // a: 8-bit integers, each + 128, b: in the order of k, by the VNNI instruction
  kTileInt8Widen = 4,  // a: 16-bit integers, 8 bytes a unit, b: of k = 4u the 0th, 2nd, 1st, 3rd
  kTileInt4 = 5,  // a: as kTileInt8, b: of k = 8u + i the lower half of byte i, of 8u + 4 + i the
                  // upper
  kTileInt4Widen =
      6,  // a: as kTileInt8Widen, b: as kTileInt4, bytes in the order of kTileInt8Widen
  kTileKinds = 7,
};
constexpr int kInt8Units = 32, kInt4Units = 16;

// c [rows, vectors·lanes] (+)= a · b. Each c is one chain over k, ascending, whatever the tile's
// shape, so a chain may be cut anywhere and continued by `accumulate`.
struct GemmTile {
  const void* a;      // row r at a + r·a_stride
  size_t a_stride;    // bytes
  const uint32_t* b;  // unit s of the columns at b + s·b_stride
  size_t b_stride;    // units
  size_t steps;       // units of k
  float* c;
  size_t c_stride;  // floats
  int rows;         // 1 … kPassRows; more than kTileRows go in two tiles
  int vectors;      // 1 … tile_vectors
  bool accumulate;
  bool ahead = false;  // b comes from memory: what follows it is fetched meanwhile
};

// What the machine can do at most: for `bench kernels`.
constexpr int kPeakOutputsMax = 384;
struct Peaks {
  // `rounds` times 2 · (multiplications of kTileRows by tile_vectors registers) operations, from
  // registers; out [kPeakOutputsMax] gives the operands and takes the sums.
  void (*multiply[kTileKinds])(size_t rounds, float* out);  // null where there is no ceiling
  // Of whole 256-byte steps. `read` returns something that depends on all of them; `copy` writes
  // past the caches.
  uint32_t (*read)(const void* from, size_t bytes);
  void (*copy)(const void* from, void* to, size_t bytes);
};

struct Isa {
  const char* name;
  int lanes;         // floats in a register
  int tile_vectors;  // registers across a tile
  bool dot;          // has kTileDot
  bool vnni;         // has kTileInt8 and kTileInt4; else their Widen

  void (*tile[kTileKinds])(const GemmTile& tile);
  // The bit patterns of ToBf16 (common/bf16.h): denormals are kept.
  void (*to_bf16)(const float* in, size_t n, uint16_t* out);
  void (*round_to_bf16)(const float* in, size_t n, float* out);  // out may be in
  void (*widen)(const uint16_t* in, size_t n, float* out);
  // The bits of the greatest |x|: of a NaN, if there is one.
  uint32_t (*greatest)(const float* x, size_t n);
  // x · factor to the nearest integers, as kTileInt8 or kTileInt8Widen wants them in a.
  void (*quantize)(const float* x, size_t n, float factor, void* out);
  // out = SiLU(gate) · up
  void (*silu_mul)(const float* gate, const float* up, size_t n, float* out);
  void (*scale)(float* x, size_t n, float factor);  // x *= factor
  // x = x·x_factor + y·y_factor
  void (*merge)(float* x, float x_factor, const float* y, float y_factor, size_t n);
  float (*exp)(float x);
  float (*sum_squares)(const float* x, size_t n);
  // y = x · factor · weight; y may be x.
  void (*norm)(const float* x, float factor, const float* weight, size_t n, float* y);
  // Columns [0, lanes) of out [units, kSubBlock] = the transpose of `lanes` rows of `units`; rows
  // may be unaligned.
  void (*transpose)(const unsigned char* const* rows, size_t units, uint32_t* out);
  // out [n]: units of the BF16 of `even` (low) and of `odd`, which may be unaligned.
  void (*pair)(const unsigned char* even, const unsigned char* odd, size_t n, uint32_t* out);
  // One step of the online softmax over the first n of s [kSubBlock], n >= 1: s becomes
  // exp(s·scale − max), 0 from n on; max and sum include the step. Returns the factor that scales
  // what was summed before.
  float (*softmax_step)(float* s, int n, float scale, float* max, float* sum);
  Peaks peaks;
};

extern const Isa kAvx2;
extern const Isa kAvx512;
extern const Isa kAvx512Vnni;
extern const Isa kAvx512Bf16;

}  // namespace switchyard::cpu
