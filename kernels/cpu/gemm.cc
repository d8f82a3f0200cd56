#include "kernels/cpu/cpu_kernels.h"
#include "kernels/cpu/tiles.h"

namespace switchyard {

using namespace cpu;  // NOLINT: this folder's own

namespace {

// A block is a chunk of rows times a panel of one call.
struct Plan {
  const GemmCall* call;
  Panels panels;
  LeftRows left;
  size_t chunk;  // rows
  size_t first_block;
};

void Multiply(const Isa& isa, const Plan& plan, size_t block) {
  const GemmCall& call = *plan.call;
  const Panels& panels = plan.panels;
  const size_t panel = block % panels.count();
  const size_t begin = block / panels.count() * plan.chunk;
  const size_t end = std::min(call.x.rows(), begin + plan.chunk);
  const size_t outputs = panels.outputs_of(panel), column = panel * panels.width;
  const bool whole = outputs == panels.width_of(panel);
  alignas(64) float tail[kPassRows * kPanelWidthMax];
  ForEachTile(begin, end, [&](const RowTile& tile) {
    float* c = whole ? call.y.row(tile.row) + column : tail;
    const size_t stride = whole ? call.y.row_stride() : kPanelWidthMax;
    MultiplyTile(isa, panels, *call.w, panel, plan.left, tile, c, stride);
    for (size_t r = 0; !whole && r < tile.count; ++r) {
      std::copy_n(tail + r * kPanelWidthMax, outputs, call.y.row(tile.row + r) + column);
    }
  });
}

}  // namespace

PackedWeight CpuGemm::Pack(const WeightView& w, WeightFormat format) const {
  return PackPanels(isa_, format, w.n, w.k, [&](size_t n) { return SourceRow{&w, n}; });
}

size_t CpuGemm::PackedBytes(WeightFormat format, size_t n, size_t k) const {
  return Panels(isa_, format, n, k).units() * sizeof(uint32_t);
}

void CpuGemm::GemmAll(KernelContext& ctx, std::span<const GemmCall> calls) const {
  Plan* plans = ctx.scratch.Get<Plan>(1, calls.size());
  size_t count = 0, blocks = 0, multiplications = 0, left_bytes = 0;
  for (const GemmCall& call : calls) {
    const auto& [x, w, y] = call;
    if (x.rows() == 0) continue;
    SY_CHECK_MSG(x.cols() == w->k, "x has ", x.cols(), " columns, the weight ", w->k);
    SY_CHECK_MSG(y.rows() == x.rows() && y.cols() == w->n, "y is ", y.rows(), " by ", y.cols());
    const Panels panels(isa_, w->format, w->n, w->k);
    const size_t chunk = ChunkRows(x.rows(), panels.count(), ctx.pool.threads());
    plans[count++] = {&call, panels, {}, chunk, blocks};
    blocks += (x.rows() + chunk - 1) / chunk * panels.count();
    multiplications += x.rows() * w->n * w->k;
    left_bytes += LeftBytes(isa_, w->format, x.rows(), x.cols());
  }
  std::byte* left = ctx.scratch.Get<std::byte>(0, left_bytes);
  for (size_t i = 0; i < count; ++i) {
    const auto& [x, w, y] = *plans[i].call;
    // Often all calls have one x.
    const GemmCall* last = i > 0 ? plans[i - 1].call : nullptr;
    if (last != nullptr && last->x.data() == x.data() && last->x.rows() == x.rows() &&
        last->x.cols() == x.cols() && last->w->format == w->format) {
      plans[i].left = plans[i - 1].left;
      continue;
    }
    plans[i].left = PrepareLeft(isa_, ctx, left, w->format, x);
    left += LeftBytes(isa_, w->format, x.rows(), x.cols());
  }
  ForEachBlock(ctx, blocks, multiplications, [&](size_t block, int) {
    const Plan& plan =
        *(std::upper_bound(plans, plans + count, block,
                           [](size_t b, const Plan& p) { return b < p.first_block; }) -
          1);
    Multiply(isa_, plan, block - plan.first_block);
  });
}

}  // namespace switchyard
