// kernels/cuda/testing.h: device memory for tests: a GPU's, or the host's under kernels/cuda/simt.
// Which of the two is linked decides; the tests are the same.
#pragma once

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "kernels/cuda/gemm.h"
#include "kernels/cuda/matrix.h"

namespace switchyard::cuda {

// Why nothing can run here (no device); empty: it can.
std::string NoDevice();
// Paths that this device, or this host, can run.
std::vector<GemmPath> TestedPaths();
// Orders of threads to try: one where there is no choice.
std::span<const uint64_t> TestedOrders();
void SetTestedOrder(uint64_t seed);

void* DeviceAllocate(size_t bytes);
void DeviceFree(void* p);
void CopyToDevice(void* to, const void* from, size_t bytes);
// After everything that was launched. CHECKs that it went well.
void CopyToHost(void* to, const void* from, size_t bytes);

// An array in device memory. Starts as `v`.
template <typename T>
class DeviceArray {
 public:
  explicit DeviceArray(const std::vector<T>& v)
      : size_(v.size()), data_(static_cast<T*>(DeviceAllocate(v.size() * sizeof(T) + 16))) {
    CopyToDevice(data_, v.data(), size_ * sizeof(T));
  }
  DeviceArray(size_t n, T value) : DeviceArray(std::vector<T>(n, value)) {}
  ~DeviceArray() { DeviceFree(data_); }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;

  T* data() const { return data_; }
  size_t size() const { return size_; }
  std::vector<T> Get() const {
    std::vector<T> v(size_);
    CopyToHost(v.data(), data_, size_ * sizeof(T));
    return v;
  }

 private:
  size_t size_;
  T* data_;
};

}  // namespace switchyard::cuda
