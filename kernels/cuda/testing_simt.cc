#include <cstdlib>
#include <cstring>

#include "common/check.h"
#include "kernels/cuda/simt/simt.h"
#include "kernels/cuda/testing.h"

namespace switchyard::cuda {

std::string NoDevice() { return ""; }

std::vector<GemmPath> TestedPaths() { return {GemmPath::kMmaSync, GemmPath::kWgmma}; }

std::span<const uint64_t> TestedOrders() {
  static constexpr uint64_t kSeeds[] = {0, 1, 2};
  return kSeeds;
}
void SetTestedOrder(uint64_t seed) { simt::SetOrder(seed); }

void* DeviceAllocate(size_t bytes) {
  void* p = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
  SY_CHECK(p != nullptr);
  return p;
}
void DeviceFree(void* p) { std::free(p); }
void CopyToDevice(void* to, const void* from, size_t bytes) {
  if (bytes > 0) std::memcpy(to, from, bytes);
}
void CopyToHost(void* to, const void* from, size_t bytes) { CopyToDevice(to, from, bytes); }

}  // namespace switchyard::cuda
