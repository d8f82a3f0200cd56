// The FFN as three calls of the reference GEMM. gate_up holds gate's rows, then up's.
#include <cmath>
#include <cstring>

#include "kernels/reference/reference.h"

namespace switchyard {
namespace {

// to = from, rounded to BF16 unless `exact`.
void Copy(Matrix<const float> from, bool exact, Rows to, size_t first) {
  for (size_t r = 0; r < from.rows(); ++r) {
    std::byte* row = to.row(first + r);
    for (size_t c = 0; c < from.cols(); ++c) {
      if (to.dtype == DType::kFloat32) {
        reinterpret_cast<float*>(row)[c] = exact ? from(r, c) : RoundToBf16(from(r, c));
      } else {
        reinterpret_cast<Bf16*>(row)[c] = ToBf16(from(r, c));
      }
    }
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

void ReferenceGroupedGemm::ExpertFfn(KernelContext& ctx, ConstRows x,
                                     std::span<const int32_t> index,
                                     std::span<const int32_t> offsets,
                                     std::span<const PackedExpert* const> experts, Rows out) const {
  SY_CHECK_MSG(offsets.size() == experts.size() + 1, experts.size(), " experts");
  const size_t all = index.empty() ? x.rows : index.size();
  SY_CHECK_MSG(offsets.front() == 0 && static_cast<size_t>(offsets.back()) == all, all);
  const ReferenceGemm gemm;
  for (size_t e = 0; e < experts.size(); ++e) {
    SY_CHECK_MSG(offsets[e] <= offsets[e + 1], "offsets descend at ", e);
    const size_t first = offsets[e], rows = offsets[e + 1] - offsets[e];
    if (rows == 0) continue;
    const PackedExpert& w = *experts[e];
    const size_t width = w.intermediate;
    Matrix<float> input(ctx.scratch.Get<float>(2, rows * x.cols), {rows, x.cols});
    for (size_t r = 0; r < rows; ++r) {
      const size_t from = index.empty() ? first + r : index[first + r];
      for (size_t i = 0; i < x.cols; ++i) input(r, i) = x(from, i);
    }
    Matrix<float> gate_up(ctx.scratch.Get<float>(0, rows * 2 * width), {rows, 2 * width});
    gemm.Gemm(ctx, input, w.gate_up, gate_up);
    Matrix<float> hidden(ctx.scratch.Get<float>(1, rows * width), {rows, width});
    for (size_t r = 0; r < rows; ++r) {
      for (size_t i = 0; i < width; ++i) {
        hidden(r, i) = Silu(gate_up(r, i)) * gate_up(r, width + i);
      }
    }
    gemm.Gemm(ctx, hidden, w.down, input);  // makes of `hidden` what the format says
    Copy(input, w.down.format == WeightFormat::kFloat32, out, first);
  }
}

}  // namespace switchyard
