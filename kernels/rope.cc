#include "kernels/rope.h"

namespace switchyard {

void ApplyRope(const RopeTable& table, RopeStyle style, std::span<const int32_t> positions,
               int heads, size_t head_stride, Matrix<float> x) {
  SY_CHECK_MSG(x.rows() == positions.size(), x.rows(), " rows, ", positions.size(), " positions");
  const size_t half = table.dim / 2;
  // The pair i is (i·step, i·step + apart).
  const size_t step = style == RopeStyle::kHalfSplit ? 1 : 2;
  const size_t apart = style == RopeStyle::kHalfSplit ? half : 1;
  for (size_t t = 0; t < x.rows(); ++t) {
    const int32_t position = positions[t];
    SY_CHECK_MSG(position >= 0 && position < table.positions, "position ", position, " of ",
                 table.positions);
    const float* cos = table.cos.data() + position * half;
    const float* sin = table.sin.data() + position * half;
    for (int head = 0; head < heads; ++head) {
      float* v = x.row(t) + head * head_stride;
      for (size_t i = 0; i < half; ++i) {
        float& first = v[i * step];
        float& second = v[i * step + apart];
        const float a = first, b = second;
        first = a * cos[i] - b * sin[i];
        second = b * cos[i] + a * sin[i];
      }
    }
  }
}

}  // namespace switchyard
