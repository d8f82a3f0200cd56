// common/cuda/peer_memory.h: device memory of one process that others of the same machine read and
// write, from another device (NVLink, PCIe) or from the same one. peer_memory.cc implements it by
// CUDA's interprocess communication, host_peer_memory.cc by the addresses of one process, for
// tests.
//
// Threads: one at a time.
#pragma once

#include <array>
#include <cstddef>
#include <utility>

#include "absl/status/statusor.h"
#include "common/cuda/device.h"

namespace switchyard::cuda {

// Exported memory is a multiple of this: CUDA shares whole blocks of it, and whatever else would
// lie in them (CUDA C++ Programming Guide, "Interprocess Communication").
inline constexpr size_t kPeerUnit = size_t{2} << 20;

// Names memory to other processes. It is good as long as the memory is.
using PeerHandle = std::array<char, 64>;
// `memory`: a multiple of kPeerUnit. CUDA leaves undefined what happens if it is freed while others
// have it open.
absl::StatusOr<PeerHandle> ExportMemory(const DeviceBuffer& memory);

// Another process's memory, for kernels and copies of the calling thread's device. Whether that
// process still lives nobody is told: who uses it must hear of it another way (moe/ep_group.h).
class PeerMemory {
 public:
  // kUnavailable: devices that cannot reach each other, a process that is gone or this one.
  static absl::StatusOr<PeerMemory> Open(const PeerHandle& handle);
  PeerMemory() = default;
  PeerMemory(PeerMemory&& other) noexcept : data_(std::exchange(other.data_, nullptr)) {}
  PeerMemory& operator=(PeerMemory&& other) noexcept {
    std::swap(data_, other.data_);
    return *this;
  }
  // Nothing on any stream may use it any more.
  ~PeerMemory();
  std::byte* data() const { return data_; }

 private:
  std::byte* data_ = nullptr;
};

}  // namespace switchyard::cuda
