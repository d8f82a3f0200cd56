// NCCL behind the communicator: non-blocking throughout, so that no call waits for another process.
#include <nccl.h>

#include <cstring>

#include "absl/strings/str_cat.h"
#include "common/cuda/communicator.h"
#include "common/cuda/runtime_status.h"
#include "common/status_macros.h"

namespace switchyard::cuda {
namespace {

static_assert(sizeof(ncclUniqueId) == sizeof(CommunicatorId));

absl::Status NcclStatus(ncclResult_t result, const char* what, ncclComm_t comm = nullptr) {
  if (result == ncclSuccess || result == ncclInProgress) return absl::OkStatus();
  const char* const more = ncclGetLastError(comm);
  return absl::UnavailableError(
      absl::StrCat(what, ": ", ncclGetErrorString(result), ": ", more != nullptr ? more : ""));
}

}  // namespace

absl::StatusOr<CommunicatorFacts> ReadCommunicatorFacts(int device_index) {
  CommunicatorFacts facts;
  cudaDeviceProp found;
  RETURN_IF_ERROR(
      ToStatus(cudaGetDeviceProperties(&found, device_index), "cudaGetDeviceProperties"));
  static_assert(sizeof found.uuid.bytes == sizeof facts.device);
  std::memcpy(facts.device.data(), found.uuid.bytes, sizeof found.uuid.bytes);
  RETURN_IF_ERROR(NcclStatus(ncclGetVersion(&facts.library), "ncclGetVersion"));
  return facts;
}

absl::StatusOr<CommunicatorId> MakeCommunicatorId() {
  ncclUniqueId made;
  RETURN_IF_ERROR(NcclStatus(ncclGetUniqueId(&made), "ncclGetUniqueId"));
  CommunicatorId id;
  std::memcpy(id.data(), &made, sizeof made);
  return id;
}

absl::StatusOr<Communicator> Communicator::Join(const CommunicatorId& id, int rank, int ranks,
                                                int ctas) {
  ncclUniqueId made;
  std::memcpy(&made, id.data(), sizeof made);
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;
  if (ctas > 0) config.maxCTAs = ctas;  // NCCL's own minimum is 1
  Communicator communicator;
  RETURN_IF_ERROR(
      NcclStatus(ncclCommInitRankConfig(&communicator.comm_, ranks, made, rank, &config),
                 "ncclCommInitRankConfig"));
  return communicator;
}

Communicator::~Communicator() {
  if (comm_ != nullptr) static_cast<void>(ncclCommAbort(comm_));
}

absl::Status Communicator::Exchange(std::span<const Block> to, std::span<const Block> from,
                                    const OwnedStream& stream) {
  absl::Status done = NcclStatus(ncclGroupStart(), "ncclGroupStart", comm_);
  for (const Block& b : to) {
    done.Update(NcclStatus(ncclSend(b.data, b.bytes, ncclUint8, b.rank, comm_, stream.get()),
                           "ncclSend", comm_));
  }
  for (const Block& b : from) {
    done.Update(NcclStatus(ncclRecv(b.data, b.bytes, ncclUint8, b.rank, comm_, stream.get()),
                           "ncclRecv", comm_));
  }
  done.Update(NcclStatus(ncclGroupEnd(), "ncclGroupEnd", comm_));
  return done;
}

absl::StatusOr<bool> Communicator::Ready() {
  ncclResult_t state = ncclSuccess;
  RETURN_IF_ERROR(NcclStatus(ncclCommGetAsyncError(comm_, &state), "ncclCommGetAsyncError", comm_));
  RETURN_IF_ERROR(NcclStatus(state, "NCCL", comm_));
  return state != ncclInProgress;
}

}  // namespace switchyard::cuda
