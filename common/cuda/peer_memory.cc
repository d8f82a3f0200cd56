// CUDA's interprocess communication behind peer memory.
#include "common/cuda/peer_memory.h"

#include <cstring>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/cuda/runtime_status.h"
#include "common/status_macros.h"

namespace switchyard::cuda {

static_assert(sizeof(cudaIpcMemHandle_t) == sizeof(PeerHandle));

absl::StatusOr<PeerHandle> ExportMemory(const DeviceBuffer& memory) {
  SY_CHECK_MSG(memory.size() > 0 && memory.size() % kPeerUnit == 0, memory.size());
  cudaIpcMemHandle_t made;
  RETURN_IF_ERROR(ToStatus(cudaIpcGetMemHandle(&made, memory.data()), "cudaIpcGetMemHandle"));
  PeerHandle handle;
  std::memcpy(handle.data(), &made, sizeof made);
  return handle;
}

absl::StatusOr<PeerMemory> PeerMemory::Open(const PeerHandle& handle) {
  cudaIpcMemHandle_t named;
  std::memcpy(&named, handle.data(), sizeof named);
  void* data = nullptr;
  const absl::Status opened = ToStatus(
      cudaIpcOpenMemHandle(&data, named, cudaIpcMemLazyEnablePeerAccess), "cudaIpcOpenMemHandle");
  if (!opened.ok()) return absl::UnavailableError(opened.message());
  PeerMemory memory;
  memory.data_ = static_cast<std::byte*>(data);
  return memory;
}

PeerMemory::~PeerMemory() {
  if (data_ != nullptr) static_cast<void>(cudaIpcCloseMemHandle(data_));
}

}  // namespace switchyard::cuda
