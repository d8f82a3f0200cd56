// kernels/cpu/tiles.h: both sides of a matrix product in the form that Isa::tile reads, and the
// walk over tiles. Shared by gemm and grouped_gemm.
//
// Right side: panels of W = lanes · tile_vectors outputs, [panel][step][W] units; the last panel is
// only as wide as it must be, in whole registers. Columns and the odd half past the end are 0.
#pragma once

#include <algorithm>

#include "kernels/cpu/isa.h"
#include "kernels/gemm.h"
#include "kernels/int8.h"
#include "kernels/rows.h"

namespace switchyard::cpu {

// Outputs of the widest panel of any table.
inline constexpr size_t kPanelWidthMax = 64;

inline size_t RoundUp(size_t n, size_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

// How the left side of weights of `format` lies; and the tile that multiplies both.
inline TileKind KindOf(const Isa& isa, WeightFormat format) {
  if (format == WeightFormat::kFloat32) return kTileFloat;
  if (IsInteger(format)) return isa.vnni ? kTileInt8 : kTileInt8Widen;
  return isa.dot ? kTileDot : kTileWiden;
}
inline TileKind TileOf(const Isa& isa, WeightFormat format) {
  if (format == WeightFormat::kInt4) return isa.vnni ? kTileInt4 : kTileInt4Widen;
  return KindOf(isa, format);
}

// Units of k.
inline size_t StepsOf(WeightFormat format, size_t k) {
  const size_t groups = (k + kInt8Group - 1) / kInt8Group;
  switch (format) {
    case WeightFormat::kFloat32:
      return k;
    case WeightFormat::kBfloat16:
      return (k + 1) / 2;
    case WeightFormat::kInt8:
      return (k + 3) / 4 + groups;
    case WeightFormat::kInt4:
      return (k + 7) / 8 + groups;
  }
  return 0;
}
static_assert(kInt8Group == 4 * kInt8Units && kInt8Group == 8 * kInt4Units);

// The right side's geometry.
struct Panels {
  Panels(const Isa& isa, WeightFormat format, size_t n, size_t k)
      : n(n),
        steps(StepsOf(format, k)),
        width(static_cast<size_t>(isa.lanes) * isa.tile_vectors),
        columns(RoundUp(n, isa.lanes)) {}

  size_t count() const { return (columns + width - 1) / width; }
  size_t units() const { return columns * steps; }
  size_t begin(size_t panel) const { return panel * width * steps; }  // in units
  size_t width_of(size_t panel) const { return std::min(width, columns - panel * width); }
  // Outputs of the panel that exist.
  size_t outputs_of(size_t panel) const { return std::min(width, n - panel * width); }

  size_t n, steps;
  size_t width;    // outputs of a full panel
  size_t columns;  // n in whole registers
};

// Packs `columns` outputs; source(n) says which row of which weight is output n (null data: zeros).
struct SourceRow {
  const WeightView* weight = nullptr;
  size_t row = 0;
};
PackedWeight PackPanels(const Isa& isa, WeightFormat format, size_t n, size_t k,
                        FunctionRef<SourceRow(size_t n)> source);

// The left side: rows of floats, of BF16 pairs or of 8-bit integers in groups, `row_bytes` apart.
struct LeftRows {
  const std::byte* data = nullptr;
  size_t row_bytes = 0;
  const std::byte* row(size_t i) const { return data + i * row_bytes; }
};

// Bytes of a row of k elements; never a power of two, so that the rows of a tile lie in different
// cache sets.
inline size_t LeftRowBytes(TileKind kind, size_t k) {
  const size_t bytes = kind == kTileInt8        ? 4 * StepsOf(WeightFormat::kInt8, k)
                       : kind == kTileInt8Widen ? 8 * StepsOf(WeightFormat::kInt8, k)
                       : kind == kTileDot       ? k * sizeof(Bf16)
                                                : k * sizeof(float);
  return RoundUp(bytes, 64) + 64;
}
// Converts n elements to `row`, rounding unless kind is kTileFloat. Integers: n is all of k.
void StoreLeft(const Isa& isa, TileKind kind, const float* x, size_t n, std::byte* row);
// Rows of x as a left side for weights of `format`: row r is x.row(index[r]), all rows if `index`
// is empty. x itself, or converted into `to`, which has LeftBytes.
size_t LeftBytes(const Isa& isa, WeightFormat format, size_t rows, size_t cols);
LeftRows PrepareLeft(const Isa& isa, KernelContext& ctx, std::byte* to, WeightFormat format,
                     const ConstRows& x, std::span<const int32_t> index = {});

// Some rows that go over a panel; `first` before all others of a chunk.
struct RowTile {
  size_t row, count;
  bool first;
};

// Calls body(RowTile) for the rows of a chunk. First as many as can go over a panel at once while
// it comes from memory; afterwards it is in the cache, and register tiles of full height, one after
// the other, are faster.
template <typename Body>
void ForEachTile(size_t begin, size_t end, Body body) {
  size_t count = 0;
  for (size_t row = begin; row < end; row += count) {
    const bool first = row == begin;
    count = std::min<size_t>(first ? kPassRows : kTileRows, end - row);
    body(RowTile{row, count, first});
  }
}

// The product of a tile's rows with one panel: c [rows, width_of(panel)].
inline void MultiplyTile(const Isa& isa, const Panels& panels, const PackedWeight& w, size_t panel,
                         LeftRows left, const RowTile& tile, float* c, size_t c_stride) {
  const size_t width = panels.width_of(panel);
  isa.tile[TileOf(isa, w.format)](
      {.a = left.row(tile.row),
       .a_stride = left.row_bytes,
       .b = reinterpret_cast<const uint32_t*>(w.bytes.data()) + panels.begin(panel),
       .b_stride = width,
       .steps = panels.steps,
       .c = c,
       .c_stride = c_stride,
       .rows = static_cast<int>(tile.count),
       .vectors = static_cast<int>(width / isa.lanes),
       .accumulate = false,
       .ahead = tile.first});
}

// Rows that are multiplied with one panel before the next: enough that the panel's way from memory
// is hidden, few enough that every thread gets some.
size_t ChunkRows(size_t rows, size_t panels, int threads);

// Calls body(block, thread) for all blocks, in tasks that are worth a thread's while.
void ForEachBlock(KernelContext& ctx, size_t blocks, size_t multiplications,
                  FunctionRef<void(size_t block, int thread)> body);

}  // namespace switchyard::cpu
