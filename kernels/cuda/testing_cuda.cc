#include <cuda_runtime.h>

#include "common/check.h"
#include "kernels/cuda/testing.h"

namespace switchyard::cuda {
namespace {

void Check(cudaError_t error) {
  SY_CHECK_MSG(error == cudaSuccess, "CUDA says: ", cudaGetErrorString(error));
}

}  // namespace

std::string NoDevice() {
  int devices = 0;
  const cudaError_t error = cudaGetDeviceCount(&devices);
  if (error == cudaSuccess && devices > 0) return "";
  return std::string("no CUDA device: ") + cudaGetErrorString(error);
}

std::vector<GemmPath> TestedPaths() {
  const auto best = PathOfDevice();
  if (best.ok() && *best == GemmPath::kWgmma) return {GemmPath::kMmaSync, GemmPath::kWgmma};
  return {GemmPath::kMmaSync};
}

std::span<const uint64_t> TestedOrders() {
  static constexpr uint64_t kSeeds[] = {0};
  return kSeeds;
}
void SetTestedOrder(uint64_t) {}

void* DeviceAllocate(size_t bytes) {
  void* p = nullptr;
  Check(cudaMalloc(&p, bytes));
  return p;
}
void DeviceFree(void* p) { Check(cudaFree(p)); }
void CopyToDevice(void* to, const void* from, size_t bytes) {
  Check(cudaMemcpy(to, from, bytes, cudaMemcpyHostToDevice));
}
void CopyToHost(void* to, const void* from, size_t bytes) {
  Check(cudaDeviceSynchronize());
  Check(cudaMemcpy(to, from, bytes, cudaMemcpyDeviceToHost));
}

}  // namespace switchyard::cuda
