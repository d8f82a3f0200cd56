#include "kernels/cuda/quant.h"

#include "kernels/cuda/device.h"
#include "kernels/cuda/fp8.h"

namespace switchyard::cuda {
namespace {

constexpr int kWarps = 4, kThreads = kWarps * kWarp, kPerLane = kQuantGroup / kWarp;

// As Int8Scale of kernels/int8.h for a finite `greatest`.
__device__ float Int8ScaleOf(float greatest) {
  const float scale =
      std::bit_cast<float>((std::bit_cast<uint32_t>(greatest / 127.0f) + 0xffffu) & 0xffff0000u);
  return scale >= 1.17549435e-38f ? scale : 0.0f;  // 0 where it would be denormal
}

struct ToInt8 {
  __device__ static float Scale(float greatest) { return Int8ScaleOf(greatest); }
  __device__ static uint8_t Value(float x, float scale) {
    const float factor = scale > 0 ? 1.0f / scale : 0.0f;
    return static_cast<uint8_t>(static_cast<int8_t>(static_cast<int>(rintf(x * factor))));
  }
};

struct ToFp8 {
  __device__ static float Scale(float greatest) { return greatest > 0 ? greatest / 448.0f : 1.0f; }
  __device__ static uint8_t Value(float x, float scale) { return ToE4m3(x / scale); }
};

template <typename To, typename In>
__global__ void __launch_bounds__(kThreads)
    QuantizeKernel(DeviceMatrix<const In> x, QuantizedRows out) {
  const int group = static_cast<int>(blockIdx.y) * kWarps + WarpIndex();
  if (group >= out.groups()) return;  // whole warps
  const int64_t row = blockIdx.x;
  const int first = group * kQuantGroup + Lane() * kPerLane;
  float v[kPerLane];
  float greatest = 0;
  bool finite = true;
  for (int i = 0; i < kPerLane; ++i) {
    v[i] = first + i < x.cols ? Load(x.data + row * x.stride + first + i) : 0.0f;
    const float magnitude = fabsf(v[i]);
    finite = finite && magnitude <= 3.402823466e38f;
    if (magnitude > greatest) greatest = magnitude;
  }
  greatest = WarpMax(greatest);
  finite = __ballot_sync(kAllLanes, finite) == kAllLanes;
  const float scale = finite ? To::Scale(greatest) : std::bit_cast<float>(0x7fc00000u);
  uint8_t* to = out.values + row * out.stride() + first;
  for (int i = 0; i < kPerLane; ++i) to[i] = finite ? To::Value(v[i], scale) : uint8_t{0};
  if (Lane() == 0) out.scales[row * out.groups() + group] = scale;
}

template <typename To>
absl::Status Quantize(const char* name, Stream stream, DeviceRows x, const QuantizedRows& out) {
  SY_CHECK_MSG(x.rows == out.rows && x.cols == out.cols && x.cols >= 1, x.rows, " by ", x.cols);
  const Grid grid{.x = x.rows, .y = Ceil(out.groups(), kWarps), .threads = kThreads};
  if (x.dtype == DType::kFloat32) {
    const DeviceMatrix<const float> m(static_cast<const float*>(x.data), x.rows, x.cols, x.stride);
    return Launch(name, QuantizeKernel<To, float>, grid, stream, m, out);
  }
  const DeviceMatrix<const Bf16> m(static_cast<const Bf16*>(x.data), x.rows, x.cols, x.stride);
  return Launch(name, QuantizeKernel<To, Bf16>, grid, stream, m, out);
}

}  // namespace

absl::Status QuantizeInt8(Stream stream, DeviceRows x, const QuantizedRows& out) {
  return Quantize<ToInt8>("QuantizeInt8", stream, x, out);
}

absl::Status QuantizeFp8(Stream stream, DeviceRows x, const QuantizedRows& out) {
  return Quantize<ToFp8>("QuantizeFp8", stream, x, out);
}

}  // namespace switchyard::cuda
