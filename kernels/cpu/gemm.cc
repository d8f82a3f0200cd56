#include "kernels/cpu/cpu_kernels.h"
#include "kernels/cpu/tiles.h"

namespace switchyard {

using namespace cpu;  // NOLINT: this folder's own

PackedWeight CpuGemm::Pack(const WeightView& w, DType dtype) const {
  return PackPanels(isa_, dtype, w.n, w.k, [&](size_t n) { return SourceRow{&w, n}; });
}

void CpuGemm::Gemm(KernelContext& ctx, Matrix<const float> x, const PackedWeight& w,
                   Matrix<float> y) const {
  const size_t rows = x.rows();
  if (rows == 0) return;
  SY_CHECK_MSG(x.cols() == w.k, "x has ", x.cols(), " columns, the weight ", w.k);
  SY_CHECK_MSG(y.rows() == rows && y.cols() == w.n, "y is ", y.rows(), " by ", y.cols());
  const Panels panels(isa_, w.dtype, w.n, w.k);
  const LeftRows left = PrepareLeft(isa_, ctx, 0, w.dtype, x);
  const size_t chunk = ChunkRows(rows, panels.count(), ctx.pool.threads());
  const size_t chunks = (rows + chunk - 1) / chunk;

  ForEachBlock(ctx, chunks * panels.count(), rows * w.n * w.k, [&](size_t block, int) {
    const size_t panel = block % panels.count();
    const size_t begin = block / panels.count() * chunk, end = std::min(rows, begin + chunk);
    const size_t outputs = panels.outputs_of(panel), column = panel * panels.width;
    const bool whole = outputs == panels.width_of(panel);
    float tail[kTileRows * kPanelWidthMax];
    for (size_t row = begin; row < end; row += kTileRows) {
      const size_t count = std::min<size_t>(kTileRows, end - row);
      float* c = whole ? y.row(row) + column : tail;
      const size_t stride = whole ? y.row_stride() : kPanelWidthMax;
      MultiplyTile(isa_, panels, w, panel, left, row, count, c, stride);
      for (size_t r = 0; !whole && r < count; ++r) {
        std::copy_n(tail + r * kPanelWidthMax, outputs, y.row(row + r) + column);
      }
    }
  });
}

}  // namespace switchyard
