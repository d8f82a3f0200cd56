#include <cmath>

#include "kernels/reference/reference.h"

namespace switchyard {

void ReferenceNorm::RmsNorm(KernelContext&, Matrix<const float> x, std::span<const float> weight,
                            float eps, Matrix<float> y) const {
  if (x.rows() == 0) return;
  SY_CHECK_MSG(weight.size() == x.cols() && y.rows() == x.rows() && y.cols() == x.cols(), "x is ",
               x.rows(), " by ", x.cols(), ", weight ", weight.size());
  for (size_t t = 0; t < x.rows(); ++t) {
    float squares = 0;
    for (size_t i = 0; i < x.cols(); ++i) squares += x(t, i) * x(t, i);
    const float inverse = 1.0f / std::sqrt(squares / static_cast<float>(x.cols()) + eps);
    for (size_t i = 0; i < x.cols(); ++i) y(t, i) = x(t, i) * inverse * weight[i];
  }
}

}  // namespace switchyard
