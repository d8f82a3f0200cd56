// The packed form is the weight itself: row-major [N, K] in the target type; of integers,
// groups of a float, the scale, and the integers, a byte each, 0 past K.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "kernels/int8.h"
#include "kernels/reference/reference.h"

namespace switchyard {
namespace {

struct Group {
  float scale;
  int8_t values[kInt8Group];
};

size_t Groups(size_t k) { return (k + kInt8Group - 1) / kInt8Group; }

float Element(const void* data, DType dtype, size_t i) {
  return dtype == DType::kFloat32 ? static_cast<const float*>(data)[i]
                                  : ToFloat(static_cast<const Bf16*>(data)[i]);
}

void Quantize(const float* x, size_t k, Group* to, float most = kInt8Most) {
  for (size_t i = 0; i < k; i += kInt8Group, ++to) {
    *to = Group{};
    to->scale = QuantizeInt8(x + i, std::min(kInt8Group, k - i), to->values, most);
  }
}

// The sums of groups are exact; FP32 adds them in ascending order.
float MultiplyIntegers(const Group* x, const Group* w, size_t groups) {
  float y = 0;
  for (size_t g = 0; g < groups; ++g) {
    int32_t sum = 0;
    for (size_t i = 0; i < kInt8Group; ++i) sum += int32_t{x[g].values[i]} * w[g].values[i];
    y = std::fma(static_cast<float>(sum), x[g].scale * w[g].scale, y);
  }
  return y;
}

float MultiplyFloats(const float* x, const PackedWeight& w, size_t n) {
  const bool bf16 = w.format == WeightFormat::kBfloat16;
  const DType dtype = bf16 ? DType::kBfloat16 : DType::kFloat32;
  float y = 0;
  for (size_t k = 0; k < w.k; ++k) {
    y += (bf16 ? RoundToBf16(x[k]) : x[k]) * Element(w.bytes.data(), dtype, n * w.k + k);
  }
  return y;
}

}  // namespace

size_t ReferenceGemm::PackedBytes(WeightFormat format, size_t n, size_t k) const {
  return n * (IsInteger(format)                   ? Groups(k) * sizeof(Group)
              : format == WeightFormat::kBfloat16 ? k * sizeof(Bf16)
                                                  : k * sizeof(float));
}

PackedWeight ReferenceGemm::Pack(const WeightView& w, WeightFormat format) const {
  SY_CHECK_MSG(w.n >= 1 && w.k >= 1, "n ", w.n, " k ", w.k);
  const size_t row_bytes = PackedBytes(format, 1, w.k);
  PackedWeight packed{AlignedBuffer(w.n * row_bytes), format, w.n, w.k};
  std::vector<float> row(w.k);
  for (size_t n = 0; n < w.n; ++n) {
    std::byte* to = packed.bytes.data() + n * row_bytes;
    for (size_t k = 0; k < w.k; ++k) row[k] = Element(w.data, w.dtype, n * w.k + k);
    if (IsInteger(format)) {
      Quantize(row.data(), w.k, reinterpret_cast<Group*>(to),
               format == WeightFormat::kInt4 ? kInt4Most : kInt8Most);
    } else if (format == WeightFormat::kBfloat16) {
      std::transform(row.begin(), row.end(), reinterpret_cast<Bf16*>(to), ToBf16);
    } else {
      std::memcpy(to, row.data(), row_bytes);
    }
  }
  return packed;
}

void ReferenceGemm::GemmAll(KernelContext& ctx, std::span<const GemmCall> calls) const {
  for (const GemmCall& call : calls) {
    const Matrix<const float>& x = call.x;
    const PackedWeight& w = *call.w;
    if (x.rows() == 0) continue;
    SY_CHECK_MSG(x.cols() == w.k, "x has ", x.cols(), " columns, the weight ", w.k);
    SY_CHECK_MSG(call.y.rows() == x.rows() && call.y.cols() == w.n, "y is ", call.y.rows(), " by ",
                 call.y.cols());
    ctx.pool.ParallelFor(x.rows(), [&](size_t m, int) {
      std::vector<Group> row(IsInteger(w.format) ? Groups(w.k) : 0);
      if (!row.empty()) Quantize(x.row(m), w.k, row.data());
      for (size_t n = 0; n < w.n; ++n) {
        const auto* groups = reinterpret_cast<const Group*>(w.bytes.data()) + n * row.size();
        call.y(m, n) = row.empty() ? MultiplyFloats(x.row(m), w, n)
                                   : MultiplyIntegers(row.data(), groups, row.size());
      }
    });
  }
}

}  // namespace switchyard
