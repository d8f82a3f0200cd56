#include "kernels/cpu/tiles.h"

#include <cstring>

namespace switchyard::cpu {
namespace {

// Rows of a chunk at most: at 240 a panel is read once for 240 multiply-adds per element, far above
// what memory needs to keep up.
constexpr size_t kChunkRowsMax = 40 * kTileRows;
// Multiply-adds of a task at least: some microseconds, what it takes to wake a thread.
constexpr size_t kTaskMultiplications = size_t{1} << 18;

constexpr size_t kPackSteps = 64;

float Element(const WeightView& w, size_t row, size_t k) {
  const size_t i = row * w.k + k;
  return w.dtype == DType::kFloat32 ? static_cast<const float*>(w.data)[i]
                                    : ToFloat(static_cast<const Bf16*>(w.data)[i]);
}

uint32_t Unit(const SourceRow& s, DType dtype, size_t step) {
  if (s.weight == nullptr) return 0;
  if (dtype == DType::kFloat32) return std::bit_cast<uint32_t>(Element(*s.weight, s.row, step));
  const size_t k = 2 * step;
  const uint32_t low = ToBf16(Element(*s.weight, s.row, k)).bits;
  const uint32_t high = k + 1 < s.weight->k ? ToBf16(Element(*s.weight, s.row, k + 1)).bits : 0;
  return low | (high << 16);
}

}  // namespace

PackedWeight PackPanels(const Isa& isa, DType dtype, size_t n, size_t k,
                        FunctionRef<SourceRow(size_t)> source) {
  SY_CHECK_MSG(n >= 1 && k >= 1, "n ", n, " k ", k);
  const Panels panels(isa, dtype, n, k);
  PackedWeight packed{AlignedBuffer(panels.units() * sizeof(uint32_t)), dtype, n, k};
  for (size_t panel = 0; panel < panels.count(); ++panel) {
    const size_t width = panels.width_of(panel);
    uint32_t* units = reinterpret_cast<uint32_t*>(packed.bytes.data()) + panels.begin(panel);
    // By stretches of k, so that the lines that are written stay in the cache for all columns.
    for (size_t begin = 0; begin < panels.steps; begin += kPackSteps) {
      const size_t end = std::min(panels.steps, begin + kPackSteps);
      for (size_t column = 0; column < width; ++column) {
        const size_t output = panel * panels.width + column;
        const SourceRow s = output < n ? source(output) : SourceRow{};
        for (size_t step = begin; step < end; ++step) {
          units[step * width + column] = Unit(s, dtype, step);
        }
      }
    }
  }
  return packed;
}

void StoreLeft(const Isa& isa, TileKind kind, const float* x, size_t n, std::byte* row) {
  switch (kind) {
    case kTileFloat:
      std::memcpy(row, x, n * sizeof(float));
      return;
    case kTileWiden:
      isa.round_to_bf16(x, n, reinterpret_cast<float*>(row));
      return;
    default:
      isa.to_bf16(x, n, reinterpret_cast<uint16_t*>(row));
  }
}

LeftRows PrepareLeft(const Isa& isa, KernelContext& ctx, int slot, DType dtype,
                     Matrix<const float> x) {
  const TileKind kind = KindOf(isa, dtype);
  if (kind == kTileFloat) {
    return {reinterpret_cast<const std::byte*>(x.data()), x.row_stride() * sizeof(float)};
  }
  const size_t row_bytes = LeftRowBytes(kind, x.cols());
  const size_t element = kind == kTileDot ? sizeof(Bf16) : sizeof(float);
  std::byte* data = ctx.scratch.Get<std::byte>(slot, x.rows() * row_bytes);
  ForEachBlock(ctx, x.rows(), x.rows() * x.cols(), [&](size_t r, int) {
    std::byte* row = data + r * row_bytes;
    StoreLeft(isa, kind, x.row(r), x.cols(), row);
    std::memset(row + x.cols() * element, 0, element);  // the half past an odd end
  });
  return {data, row_bytes};
}

size_t ChunkRows(size_t rows, size_t panels, int threads) {
  const size_t even = rows * panels / (4 * static_cast<size_t>(threads));
  return std::clamp<size_t>(RoundUp(even, kTileRows), kTileRows, kChunkRowsMax);
}

void ForEachBlock(KernelContext& ctx, size_t blocks, size_t multiplications,
                  FunctionRef<void(size_t, int)> body) {
  const size_t tasks = std::min(blocks, multiplications / kTaskMultiplications + 1);
  ctx.pool.ParallelFor(tasks, [&](size_t task, int thread) {
    for (size_t b = task * blocks / tasks; b < (task + 1) * blocks / tasks; ++b) body(b, thread);
  });
}

}  // namespace switchyard::cpu
