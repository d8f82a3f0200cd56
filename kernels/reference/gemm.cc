// The packed form is the weight itself: row-major [N, K] in the target type.
#include "kernels/reference/reference.h"

namespace switchyard {
namespace {

float Element(const void* data, DType dtype, size_t i) {
  return dtype == DType::kFloat32 ? static_cast<const float*>(data)[i]
                                  : ToFloat(static_cast<const Bf16*>(data)[i]);
}

}  // namespace

PackedWeight ReferenceGemm::Pack(const WeightView& w, DType dtype) const {
  SY_CHECK_MSG(w.n >= 1 && w.k >= 1, "n ", w.n, " k ", w.k);
  PackedWeight packed{AlignedBuffer(w.n * w.k * SizeOf(dtype)), dtype, w.n, w.k};
  for (size_t i = 0; i < w.n * w.k; ++i) {
    const float v = Element(w.data, w.dtype, i);
    if (dtype == DType::kFloat32) {
      reinterpret_cast<float*>(packed.bytes.data())[i] = v;
    } else {
      reinterpret_cast<Bf16*>(packed.bytes.data())[i] = ToBf16(v);
    }
  }
  return packed;
}

void ReferenceGemm::Gemm(KernelContext& ctx, Matrix<const float> x, const PackedWeight& w,
                         Matrix<float> y) const {
  if (x.rows() == 0) return;
  SY_CHECK_MSG(x.cols() == w.k, "x has ", x.cols(), " columns, the weight ", w.k);
  SY_CHECK_MSG(y.rows() == x.rows() && y.cols() == w.n, "y is ", y.rows(), " by ", y.cols());
  const bool bf16 = w.dtype == DType::kBfloat16;
  ctx.pool.ParallelFor(x.rows(), [&](size_t m, int) {
    for (size_t n = 0; n < w.n; ++n) {
      float sum = 0;
      for (size_t k = 0; k < w.k; ++k) {
        const float v = bf16 ? RoundToBf16(x(m, k)) : x(m, k);
        sum += v * Element(w.bytes.data(), w.dtype, n * w.k + k);
      }
      y(m, n) = sum;
    }
  });
}

}  // namespace switchyard
