// The FFN as three calls of the reference GEMM. gate_up holds gate's rows, then up's.
#include <cmath>
#include <cstring>

#include "kernels/reference/reference.h"

namespace switchyard {
namespace {

void RoundAll(Matrix<float> m) {
  for (size_t r = 0; r < m.rows(); ++r) {
    for (size_t c = 0; c < m.cols(); ++c) m(r, c) = RoundToBf16(m(r, c));
  }
}

float Silu(float x) { return x / (1.0f + std::exp(-x)); }

}  // namespace

PackedExpert ReferenceGroupedGemm::PackExpert(const WeightView& gate, const WeightView& up,
                                              const WeightView& down, WeightFormat format) const {
  SY_CHECK_MSG(up.n == gate.n && up.k == gate.k && down.n == gate.k && down.k == gate.n, "gate is ",
               gate.n, " by ", gate.k);
  const ReferenceGemm gemm;
  const PackedWeight g = gemm.Pack(gate, format), u = gemm.Pack(up, format);
  PackedWeight both{AlignedBuffer(g.bytes.size() + u.bytes.size()), format, 2 * gate.n, gate.k};
  std::memcpy(both.bytes.data(), g.bytes.data(), g.bytes.size());
  std::memcpy(both.bytes.data() + g.bytes.size(), u.bytes.data(), u.bytes.size());
  return {std::move(both), gemm.Pack(down, format), gate.k, gate.n};
}

void ReferenceGroupedGemm::ExpertFfn(KernelContext& ctx, Matrix<const float> x,
                                     std::span<const int32_t> offsets,
                                     std::span<const PackedExpert* const> experts,
                                     Matrix<float> out) const {
  SY_CHECK_MSG(offsets.size() == experts.size() + 1, experts.size(), " experts");
  SY_CHECK_MSG(offsets.front() == 0 && static_cast<size_t>(offsets.back()) == x.rows(), x.rows());
  const ReferenceGemm gemm;
  for (size_t e = 0; e < experts.size(); ++e) {
    SY_CHECK_MSG(offsets[e] <= offsets[e + 1], "offsets descend at ", e);
    const size_t first = offsets[e], rows = offsets[e + 1] - offsets[e];
    if (rows == 0) continue;
    const PackedExpert& w = *experts[e];
    const size_t width = w.intermediate;
    Matrix<float> gate_up(ctx.scratch.Get<float>(0, rows * 2 * width), {rows, 2 * width});
    gemm.Gemm(ctx, x.Slice(first, rows), w.gate_up, gate_up);
    Matrix<float> hidden(ctx.scratch.Get<float>(1, rows * width), {rows, width});
    for (size_t r = 0; r < rows; ++r) {
      for (size_t i = 0; i < width; ++i) {
        hidden(r, i) = Silu(gate_up(r, i)) * gate_up(r, width + i);
      }
    }
    gemm.Gemm(ctx, hidden, w.down,
              out.Slice(first, rows));  // makes of `hidden` what the format says
    if (w.down.format != WeightFormat::kFloat32) RoundAll(out.Slice(first, rows));
  }
}

}  // namespace switchyard
