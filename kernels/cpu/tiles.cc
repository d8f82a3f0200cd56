#include "kernels/cpu/tiles.h"

#include <cstring>

namespace switchyard::cpu {
namespace {

// Rows of a chunk at most: at 240 a panel is read once for 240 multiply-adds per element, far above
// what memory needs to keep up.
constexpr size_t kChunkRowsMax = 40 * kTileRows;
// Multiply-adds that are worth a second thread, and of a task at least.
constexpr size_t kParallelMultiplications = size_t{1} << 17;
constexpr size_t kTaskMultiplications = size_t{1} << 15;
// Neighbouring blocks are one task while a thread has so many tasks, or up to so many
// multiply-adds: what is fetched at a block's end is the next one's beginning. Still fine enough
// that no thread waits long for another's last, and one whose core is taken from it delays little
// (docs/numbers.md).
constexpr size_t kThreadTasks = 8;
constexpr size_t kLongTaskMultiplications = size_t{1} << 18;

// Steps of all columns of a panel that are packed before the next; of integers, a group.
size_t StretchOf(WeightFormat format) {
  if (!IsInteger(format)) return 64;
  return (format == WeightFormat::kInt4 ? kInt4Units : kInt8Units) + 1;
}

float Element(const WeightView& w, size_t row, size_t k) {
  const size_t i = row * w.k + k;
  return w.dtype == DType::kFloat32 ? static_cast<const float*>(w.data)[i]
                                    : ToFloat(static_cast<const Bf16*>(w.data)[i]);
}

uint32_t Unit(const SourceRow& s, WeightFormat format, size_t step) {
  if (format == WeightFormat::kFloat32) {
    return std::bit_cast<uint32_t>(Element(*s.weight, s.row, step));
  }
  const size_t k = 2 * step;
  const uint32_t low = ToBf16(Element(*s.weight, s.row, k)).bits;
  const uint32_t high = k + 1 < s.weight->k ? ToBf16(Element(*s.weight, s.row, k + 1)).bits : 0;
  return low | (high << 16);
}

// The units of one group, `stride` apart: isa.h says what is in them.
void PackIntegers(const SourceRow& s, const Isa& isa, WeightFormat format, size_t group,
                  size_t units, uint32_t* to, size_t stride) {
  const size_t first = group * kInt8Group, count = std::min(kInt8Group, s.weight->k - first);
  const bool four = format == WeightFormat::kInt4;
  constexpr uint32_t kLowHalves = 0x0f0f0f0f;
  float x[kInt8Group];
  int8_t q[kInt8Group] = {};
  for (size_t i = 0; i < count; ++i) x[i] = Element(*s.weight, s.row, first + i);
  const float scale = QuantizeInt8(x, count, q, four ? kInt4Most : kInt8Most);
  int32_t sum = 0;  // at most 127 · 128: 16 bits hold it
  for (const int8_t v : q) sum += v;
  to[0] = std::bit_cast<uint32_t>(scale) | static_cast<uint16_t>(sum);
  const size_t second = isa.vnni ? 1 : 2;  // of the four in a unit, which is its second byte
  const auto bytes = [&](const int8_t* v) {
    const auto byte = [&](size_t i) { return uint32_t{static_cast<uint8_t>(v[i])}; };
    return byte(0) | byte(second) << 8 | byte(3 - second) << 16 | byte(3) << 24;
  };
  for (size_t u = 1; u < units; ++u) {
    const int8_t* v = q + (four ? 8 : 4) * (u - 1);
    to[u * stride] = four ? (bytes(v) & kLowHalves) | (bytes(v + 4) & kLowHalves) << 4 : bytes(v);
  }
}

void StoreInt8(const Isa& isa, TileKind kind, const float* x, size_t n, std::byte* row) {
  const size_t unit = kind == kTileInt8 ? 4 : 8, element = unit / 4;
  for (size_t begin = 0; begin < n; begin += kInt8Group) {
    const size_t count = std::min(kInt8Group, n - begin);
    const float scale = Int8Scale(std::bit_cast<float>(isa.greatest(x + begin, count)));
    const float factor = Int8Factor(scale);
    std::memcpy(row, &scale, sizeof(scale));
    row += unit;
    if (factor > 0) {
      isa.quantize(x + begin, count, factor, row);
    } else {
      // Integers that are 0 are stored as 128 where they are unsigned.
      std::memset(row, kind == kTileInt8 ? 128 : 0, count * element);
    }
    // Units are of 4 elements, or of 8 where weights have 4 bits; the row has room for both.
    std::memset(row + count * element, 0, (RoundUp(count, 8) - count) * element);
    row += RoundUp(count, 4) * element;
  }
}

void StoreLeftOfBf16(const Isa& isa, Scratch& scratch, TileKind kind, const std::byte* x, size_t n,
                     std::byte* row) {
  const auto* halves = reinterpret_cast<const uint16_t*>(x);
  if (kind == kTileDot) {
    std::memcpy(row, x, n * sizeof(Bf16));
  } else if (kind == kTileFloat || kind == kTileWiden) {
    isa.widen(halves, n, reinterpret_cast<float*>(row));
  } else {
    float* floats = scratch.Get<float>(0, n);
    isa.widen(halves, n, floats);
    StoreInt8(isa, kind, floats, n, row);
  }
}

}  // namespace

PackedWeight PackPanels(const Isa& isa, WeightFormat format, size_t n, size_t k,
                        FunctionRef<SourceRow(size_t)> source) {
  SY_CHECK_MSG(n >= 1 && k >= 1, "n ", n, " k ", k);
  const Panels panels(isa, format, n, k);
  const size_t stretch = StretchOf(format);
  PackedWeight packed{AlignedBuffer(panels.units() * sizeof(uint32_t)), format, n, k};
  for (size_t panel = 0; panel < panels.count(); ++panel) {
    const size_t width = panels.width_of(panel);
    uint32_t* units = reinterpret_cast<uint32_t*>(packed.bytes.data()) + panels.begin(panel);
    // By stretches of k, so that the lines that are written stay in the cache for all columns.
    for (size_t begin = 0; begin < panels.steps; begin += stretch) {
      const size_t end = std::min(panels.steps, begin + stretch);
      for (size_t column = 0; column < width; ++column) {
        const size_t output = panel * panels.width + column;
        const SourceRow s = output < n ? source(output) : SourceRow{};
        uint32_t* to = units + begin * width + column;
        if (s.weight == nullptr) {
          for (size_t step = begin; step < end; ++step, to += width) *to = 0;
        } else if (IsInteger(format)) {
          PackIntegers(s, isa, format, begin / stretch, end - begin, to, width);
        } else {
          for (size_t step = begin; step < end; ++step, to += width) *to = Unit(s, format, step);
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
    case kTileInt8:
    case kTileInt8Widen:
      StoreInt8(isa, kind, x, n, row);
      return;
    default:
      isa.to_bf16(x, n, reinterpret_cast<uint16_t*>(row));
  }
}

size_t LeftBytes(const Isa& isa, WeightFormat format, size_t rows, size_t cols) {
  return rows * LeftRowBytes(KindOf(isa, format), cols);
}

LeftRows PrepareLeft(const Isa& isa, KernelContext& ctx, std::byte* to, WeightFormat format,
                     const ConstRows& x, std::span<const int32_t> index) {
  const TileKind kind = KindOf(isa, format);
  const bool floats = x.dtype == DType::kFloat32;
  if (kind == kTileFloat && floats && index.empty()) return {x.data, x.row_bytes};
  const size_t row_bytes = LeftRowBytes(kind, x.cols);
  const size_t rows = index.empty() ? x.rows : index.size();
  ForEachBlock(ctx, rows, rows * x.cols, [&](size_t r, int thread) {
    const std::byte* from = x.row(index.empty() ? r : index[r]);
    std::byte* row = to + r * row_bytes;
    if (floats) {
      StoreLeft(isa, kind, reinterpret_cast<const float*>(from), x.cols, row);
    } else {
      StoreLeftOfBf16(isa, ctx.thread_scratch[thread], kind, from, x.cols, row);
    }
    if (IsInteger(format)) return;
    const size_t element = kind == kTileDot ? sizeof(Bf16) : sizeof(float);
    std::memset(row + x.cols * element, 0, element);  // the half past an odd end
  });
  return {to, row_bytes};
}

size_t ChunkRows(size_t rows, size_t panels, int threads) {
  const size_t even = rows * panels / (4 * static_cast<size_t>(threads));
  return std::clamp<size_t>(RoundUp(even, kTileRows), kPassRows, kChunkRowsMax);
}

void ForEachBlock(KernelContext& ctx, size_t blocks, size_t multiplications,
                  FunctionRef<void(size_t, int)> body) {
  const bool parallel = multiplications >= kParallelMultiplications;
  const size_t fine = std::min(blocks, multiplications / kTaskMultiplications);
  const size_t enough = std::max(multiplications / kLongTaskMultiplications,
                                 kThreadTasks * static_cast<size_t>(ctx.pool.threads()));
  const size_t tasks = parallel ? std::min(fine, enough) : 1;
  ctx.pool.ParallelFor(tasks, [&](size_t task, int thread) {
    for (size_t b = task * blocks / tasks; b < (task + 1) * blocks / tasks; ++b) body(b, thread);
  });
}

}  // namespace switchyard::cpu
