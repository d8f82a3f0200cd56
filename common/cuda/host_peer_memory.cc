// Threads of one process in the place of processes: a handle is an address.
#include <cstring>

#include "common/check.h"
#include "common/cuda/peer_memory.h"

namespace switchyard::cuda {

absl::StatusOr<PeerHandle> ExportMemory(const DeviceBuffer& memory) {
  SY_CHECK_MSG(memory.size() > 0 && memory.size() % kPeerUnit == 0, memory.size());
  PeerHandle handle = {};
  const std::byte* const data = memory.data();
  std::memcpy(handle.data(), &data, sizeof data);
  return handle;
}

absl::StatusOr<PeerMemory> PeerMemory::Open(const PeerHandle& handle) {
  PeerMemory memory;
  std::memcpy(&memory.data_, handle.data(), sizeof memory.data_);
  if (memory.data_ == nullptr) return absl::UnavailableError("a handle of nothing");
  return memory;
}

PeerMemory::~PeerMemory() = default;

}  // namespace switchyard::cuda
