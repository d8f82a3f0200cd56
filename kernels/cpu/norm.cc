#include <cmath>

#include "kernels/cpu/cpu_kernels.h"
#include "kernels/cpu/tiles.h"

namespace switchyard {

void CpuNorm::RmsNorm(KernelContext& ctx, Matrix<const float> x, std::span<const float> weight,
                      float eps, Matrix<float> y) const {
  if (x.rows() == 0) return;
  SY_CHECK_MSG(weight.size() == x.cols() && y.rows() == x.rows() && y.cols() == x.cols(), "x is ",
               x.rows(), " by ", x.cols(), ", weight ", weight.size());
  const size_t n = x.cols();
  cpu::ForEachBlock(ctx, x.rows(), x.rows() * n, [&](size_t t, int) {
    const float mean = isa_.sum_squares(x.row(t), n) / static_cast<float>(n);
    isa_.norm(x.row(t), 1.0f / std::sqrt(mean + eps), weight.data(), n, y.row(t));
  });
}

}  // namespace switchyard
