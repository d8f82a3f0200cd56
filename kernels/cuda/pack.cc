// Weights into the layouts of gemm.h, on the host.
#include <algorithm>
#include <cstring>
#include <vector>

#include "common/check.h"
#include "kernels/cuda/gemm.h"
#include "kernels/int8.h"

namespace switchyard::cuda {
namespace {

float Element(const WeightView& w, size_t row, size_t i) {
  return w.dtype == DType::kFloat32 ? static_cast<const float*>(w.data)[row * w.k + i]
                                    : ToFloat(static_cast<const Bf16*>(w.data)[row * w.k + i]);
}

// One row of integers and its scales.
void PackIntegers(const std::vector<float>& row, size_t k, DeviceFormat format, std::byte* data,
                  float* scales) {
  const float most = format == DeviceFormat::kInt4 ? kInt4Most : kInt8Most;
  for (size_t first = 0; first < row.size(); first += kInt8Group) {
    int8_t values[kInt8Group] = {};
    scales[first / kInt8Group] =
        first < k
            ? switchyard::QuantizeInt8(&row[first], std::min(kInt8Group, k - first), values, most)
            : 0.0f;
    if (format == DeviceFormat::kInt8) {
      std::memcpy(data + first, values, kInt8Group);
      continue;
    }
    for (size_t i = 0; i < kInt8Group; i += 2) {
      data[(first + i) / 2] =
          static_cast<std::byte>((values[i] & 15) | ((values[i + 1] & 15) << 4));
    }
  }
}

void PackRow(const WeightView& w, size_t n, DeviceFormat format, std::byte* data, float* scales) {
  std::vector<float> row(PaddedK(static_cast<int64_t>(w.k)), 0.0f);
  for (size_t i = 0; i < w.k; ++i) row[i] = Element(w, n, i);
  if (format == DeviceFormat::kFloat32) {
    std::memcpy(data, row.data(), row.size() * sizeof(float));
  } else if (format == DeviceFormat::kBfloat16) {
    for (size_t i = 0; i < row.size(); ++i) {
      const Bf16 half = ToBf16(row[i]);
      std::memcpy(data + i * sizeof half, &half, sizeof half);
    }
  } else {
    SY_CHECK(format == DeviceFormat::kInt8 || format == DeviceFormat::kInt4);
    PackIntegers(row, w.k, format, data, scales);
  }
}

// Of one row.
size_t RowBytes(DeviceFormat format, int k) {
  const size_t padded = static_cast<size_t>(PaddedK(k));
  return format == DeviceFormat::kFloat32    ? padded * sizeof(float)
         : format == DeviceFormat::kBfloat16 ? padded * sizeof(Bf16)
         : format == DeviceFormat::kInt4     ? padded / 2
                                             : padded;
}
size_t RowScales(DeviceFormat format, int k) {
  return format == DeviceFormat::kInt8 || format == DeviceFormat::kInt4 ? QuantGroups(k) : 0;
}

}  // namespace

size_t WeightBytes(DeviceFormat format, int n, int k) { return n * RowBytes(format, k); }

size_t WeightScales(DeviceFormat format, int n, int k) {
  return format == DeviceFormat::kFp8 ? static_cast<size_t>(QuantGroups(n)) * QuantGroups(k)
                                      : n * RowScales(format, k);
}

void PackWeight(const WeightView& w, DeviceFormat format, std::byte* data, float* scales) {
  const int k = static_cast<int>(w.k);
  for (size_t n = 0; n < w.n; ++n) {
    PackRow(w, n, format, data + n * RowBytes(format, k), scales + n * RowScales(format, k));
  }
}

void PackGateUp(const WeightView& gate, const WeightView& up, DeviceFormat format, std::byte* data,
                float* scales) {
  SY_CHECK_MSG(gate.n == up.n && gate.k == up.k, gate.n, " by ", gate.k);
  const int k = static_cast<int>(gate.k);
  for (size_t n = 0; n < 2 * gate.n; ++n) {
    PackRow(n % 2 == 0 ? gate : up, n / 2, format, data + n * RowBytes(format, k),
            scales + n * RowScales(format, k));
  }
}

void PackFp8(const uint8_t* values, const float* block_scales, int n, int k, std::byte* data,
             float* scales) {
  const size_t padded = static_cast<size_t>(PaddedK(k));
  for (int row = 0; row < n; ++row) {
    std::byte* to = data + row * padded;
    std::memcpy(to, values + static_cast<size_t>(row) * k, k);
    std::memset(to + k, 0, padded - k);
  }
  std::memcpy(scales, block_scales, WeightScales(DeviceFormat::kFp8, n, k) * sizeof(float));
}

}  // namespace switchyard::cuda
