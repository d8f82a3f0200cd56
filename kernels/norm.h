// kernels/norm.h: RMSNorm (Zhang & Sennrich 2019).
#pragma once

#include <span>

#include "common/tensor_view.h"
#include "kernels/context.h"

namespace switchyard {

class NormOps {
 public:
  virtual ~NormOps() = default;
  // y[t][i] = x[t][i] / sqrt(mean_j x[t][j]² + eps) · weight[i], FP32 throughout. x, y [T, H];
  // weight [H]. y may be x.
  virtual void RmsNorm(KernelContext& ctx, Matrix<const float> x, std::span<const float> weight,
                       float eps, Matrix<float> y) const = 0;
};

}  // namespace switchyard
