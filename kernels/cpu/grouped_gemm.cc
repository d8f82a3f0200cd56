// gate_up is packed so that a panel holds gate and up of the same outputs, register by register:
// one walk over x gives both, and the activation is made from a tile that is still in the cache.
#include "kernels/cpu/cpu_kernels.h"
#include "kernels/cpu/tiles.h"

namespace switchyard {

using namespace cpu;  // NOLINT: this folder's own

namespace {

// Some rows of one expert; a block of work is a slice times a panel.
struct Slice {
  const PackedExpert* expert;
  size_t begin, end;
};

std::span<Slice> SliceRows(KernelContext& ctx, int slot, std::span<const int32_t> offsets,
                           std::span<const PackedExpert* const> experts, size_t panels) {
  const size_t rows = offsets.back();
  const size_t chunk = ChunkRows(rows, panels, ctx.pool.threads());
  Slice* slices = ctx.scratch.Get<Slice>(slot, experts.size() + rows / chunk);
  size_t count = 0;
  for (size_t e = 0; e < experts.size(); ++e) {
    SY_CHECK_MSG(offsets[e] <= offsets[e + 1], "offsets descend at ", e);
    const size_t end = offsets[e + 1];
    for (size_t begin = offsets[e]; begin < end; begin += chunk) {
      slices[count++] = {experts[e], begin, std::min(end, begin + chunk)};
    }
  }
  return {slices, count};
}

std::byte* Left(KernelContext& ctx, int slot, const Isa& isa, WeightFormat format, size_t rows,
                size_t cols) {
  return ctx.scratch.Get<std::byte>(slot, LeftBytes(isa, format, rows, cols));
}

// hidden = SiLU(gate) ⊙ up for one slice and one panel of gate_up, as left rows of `kind`.
void GateUpBlock(const Isa& isa, const Slice& slice, const Panels& panels, size_t panel,
                 LeftRows left, TileKind kind, std::byte* hidden, size_t hidden_bytes) {
  const PackedWeight& w = slice.expert->gate_up;
  const size_t width = panels.width_of(panel), lanes = isa.lanes;
  const size_t element = kind == kTileDot ? sizeof(Bf16) : sizeof(float);
  const size_t column = panel * panels.width / 2;
  // In whole lines of the cache: integers load and store it once a group.
  alignas(64) float gate_up[kPassRows * kPanelWidthMax];
  float product[kPanelWidthMax / 2];
  ForEachTile(slice.begin, slice.end, [&](const RowTile& tile) {
    MultiplyTile(isa, panels, w, panel, left, tile, gate_up, width);
    for (size_t r = 0; r < tile.count; ++r) {
      const float* gate = gate_up + r * width;
      for (size_t i = 0; i < width / 2; i += lanes) {
        isa.silu_mul(gate + 2 * i, gate + 2 * i + lanes, lanes, product + i);
      }
      StoreLeft(isa, kind, product, width / 2,
                hidden + (tile.row + r) * hidden_bytes + column * element);
    }
  });
}

// out = round(down · hidden) for one slice and one panel of down.
void DownBlock(const Isa& isa, const Slice& slice, const Panels& panels, size_t panel,
               LeftRows hidden, const Rows& out) {
  const PackedWeight& w = slice.expert->down;
  const size_t width = panels.width_of(panel), outputs = panels.outputs_of(panel);
  alignas(64) float c[kPassRows * kPanelWidthMax];
  ForEachTile(slice.begin, slice.end, [&](const RowTile& tile) {
    MultiplyTile(isa, panels, w, panel, hidden, tile, c, width);
    for (size_t r = 0; r < tile.count; ++r) {
      std::byte* to = out.row(tile.row + r) + panel * panels.width * SizeOf(out.dtype);
      if (out.dtype == DType::kBfloat16) {
        isa.to_bf16(c + r * width, outputs, reinterpret_cast<uint16_t*>(to));
      } else if (w.format != WeightFormat::kFloat32) {
        isa.round_to_bf16(c + r * width, outputs, reinterpret_cast<float*>(to));
      } else {
        std::copy_n(c + r * width, outputs, reinterpret_cast<float*>(to));
      }
    }
  });
}

}  // namespace

size_t CpuGroupedGemm::GateUpRows(size_t intermediate) const {
  return 2 * RoundUp(intermediate, isa_.lanes);
}

PackedExpert CpuGroupedGemm::PackExpert(const WeightView& gate, const WeightView& up,
                                        const WeightView& down, WeightFormat format) const {
  SY_CHECK_MSG(up.n == gate.n && up.k == gate.k && down.n == gate.k && down.k == gate.n, "gate is ",
               gate.n, " by ", gate.k);
  const size_t width = gate.n, hidden = gate.k, lanes = isa_.lanes;
  const auto interleaved = [&](size_t n) {
    const size_t row = n / (2 * lanes) * lanes + n % lanes;
    if (row >= width) return SourceRow{};
    return SourceRow{n / lanes % 2 == 0 ? &gate : &up, row};
  };
  return {PackPanels(isa_, format, GateUpRows(width), hidden, interleaved),
          PackPanels(isa_, format, hidden, width,
                     [&](size_t n) {
                       return SourceRow{&down, n};
                     }),
          hidden, width};
}

void CpuGroupedGemm::ExpertFfn(KernelContext& ctx, ConstRows x, std::span<const int32_t> index,
                               std::span<const int32_t> offsets,
                               std::span<const PackedExpert* const> experts, Rows out) const {
  const size_t rows = index.empty() ? x.rows : index.size();
  SY_CHECK_MSG(offsets.size() == experts.size() + 1, experts.size(), " experts");
  SY_CHECK_MSG(offsets.front() == 0 && static_cast<size_t>(offsets.back()) == rows, rows);
  if (rows == 0) return;
  const size_t width = experts[0]->intermediate, hidden_width = experts[0]->hidden;
  const WeightFormat format = experts[0]->down.format;
  for (const PackedExpert* e : experts) {
    SY_CHECK_MSG(e->intermediate == width && e->hidden == hidden_width && e->down.format == format,
                 "experts of one call differ");
  }
  SY_CHECK_MSG(x.cols == hidden_width && out.cols == hidden_width && out.rows == rows, "x is ",
               x.rows, " by ", x.cols, ", out ", out.rows, " by ", out.cols);
  const Panels gate_up(isa_, format, experts[0]->gate_up.n, hidden_width);
  const Panels down(isa_, format, hidden_width, width);
  const LeftRows left =
      PrepareLeft(isa_, ctx, Left(ctx, 0, isa_, format, rows, hidden_width), format, x, index);
  // Integers need all of a group: they are made when its panels are there.
  const bool integers = IsInteger(format);
  const TileKind kind = integers ? kTileFloat : KindOf(isa_, format);
  const size_t hidden_bytes = LeftRowBytes(kind, width);
  std::byte* hidden = ctx.scratch.Get<std::byte>(1, rows * hidden_bytes);
  const std::span<const Slice> slices =
      SliceRows(ctx, 2, offsets, experts, std::min(gate_up.count(), down.count()));

  const size_t multiplications = rows * hidden_width * width;
  ForEachBlock(ctx, slices.size() * gate_up.count(), 2 * multiplications, [&](size_t b, int) {
    GateUpBlock(isa_, slices[b / gate_up.count()], gate_up, b % gate_up.count(), left, kind, hidden,
                hidden_bytes);
  });
  LeftRows activation{hidden, hidden_bytes};
  if (integers) {
    const ConstRows floats(hidden, DType::kFloat32, rows, width, hidden_bytes);
    activation = PrepareLeft(isa_, ctx, Left(ctx, 3, isa_, format, rows, width), format, floats);
  }
  ForEachBlock(ctx, slices.size() * down.count(), multiplications, [&](size_t b, int) {
    DownBlock(isa_, slices[b / down.count()], down, b % down.count(), activation, out);
  });
}

}  // namespace switchyard
