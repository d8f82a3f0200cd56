// The CUDA runtime behind the handles.
#include "common/cuda/device.h"

#include <memory>

#include "absl/strings/str_cat.h"
#include "common/cuda/runtime_status.h"
#include "common/status_macros.h"

namespace switchyard::cuda {
namespace {

constexpr int kMajorMin = 8;  // of the machine code that kernels/cuda is compiled to

bool NoDevice(cudaError_t error) {
  return error == cudaErrorNoDevice || error == cudaErrorInsufficientDriver ||
         error == cudaErrorInvalidDevice || error == cudaErrorSystemDriverMismatch ||
         error == cudaErrorSystemNotReady;
}

}  // namespace

absl::Status ToStatus(cudaError_t error, absl::string_view what) {
  if (error == cudaSuccess) return absl::OkStatus();
  static_cast<void>(cudaGetLastError());  // told here, not by the next launch
  const std::string text =
      absl::StrCat(what, ": ", cudaGetErrorName(error), ": ", cudaGetErrorString(error));
  if (error == cudaErrorMemoryAllocation) return absl::ResourceExhaustedError(text);
  if (NoDevice(error)) return absl::FailedPreconditionError(text);
  return absl::InternalError(text);
}

absl::StatusOr<DeviceProperties> OpenDevice(int index) {
  int count = 0;
  RETURN_IF_ERROR(ToStatus(cudaGetDeviceCount(&count), "CUDA devices"));
  if (index < 0 || index >= count) {
    return absl::FailedPreconditionError(
        absl::StrCat("CUDA device ", index, ": this machine has ", count));
  }
  cudaDeviceProp found;
  RETURN_IF_ERROR(ToStatus(cudaGetDeviceProperties(&found, index), "cudaGetDeviceProperties"));
  if (found.major < kMajorMin) {
    return absl::FailedPreconditionError(
        absl::StrCat("CUDA device ", index, ", ", found.name, ": compute capability ", found.major,
                     ".", found.minor, ", at least ", kMajorMin, ".0 is wanted"));
  }
  RETURN_IF_ERROR(UseDevice(index));
  DeviceProperties p{.index = index,
                     .name = found.name,
                     .major = found.major,
                     .minor = found.minor,
                     .multiprocessors = found.multiProcessorCount,
                     .shared_bytes = found.sharedMemPerBlockOptin};
  RETURN_IF_ERROR(ToStatus(cudaMemGetInfo(&p.free_bytes, &p.memory_bytes), "cudaMemGetInfo"));
  return p;
}

absl::Status UseDevice(int index) { return ToStatus(cudaSetDevice(index), "cudaSetDevice"); }

template <Memory kind>
absl::StatusOr<Buffer<kind>> Buffer<kind>::Create(size_t bytes) {
  Buffer buffer;
  if (bytes == 0) return buffer;
  void* data = nullptr;
  const cudaError_t error = kind == Memory::kDevice
                                ? cudaMalloc(&data, bytes)
                                : cudaHostAlloc(&data, bytes, cudaHostAllocDefault);
  if (error != cudaSuccess) {
    size_t free = 0, total = 0;
    static_cast<void>(cudaMemGetInfo(&free, &total));
    return ToStatus(
        error,
        absl::StrCat(bytes, kind == Memory::kDevice ? " bytes of the device" : " pinned bytes",
                     " (", free, " of the device's ", total, " are free)"));
  }
  buffer.data_ = static_cast<std::byte*>(data);
  buffer.size_ = bytes;
  return buffer;
}

template <Memory kind>
Buffer<kind>::~Buffer() {
  if (data_ == nullptr) return;
  static_cast<void>(kind == Memory::kDevice ? cudaFree(data_) : cudaFreeHost(data_));
}

template class Buffer<Memory::kDevice>;
template class Buffer<Memory::kPinned>;

void Destroy(CUstream_st* stream) { static_cast<void>(cudaStreamDestroy(stream)); }
void Destroy(CUevent_st* event) { static_cast<void>(cudaEventDestroy(event)); }
void Destroy(CUgraphExec_st* graph) { static_cast<void>(cudaGraphExecDestroy(graph)); }

absl::StatusOr<OwnedStream> MakeStream() {
  cudaStream_t stream = nullptr;
  RETURN_IF_ERROR(
      ToStatus(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreate"));
  return OwnedStream(stream);
}

absl::StatusOr<Event> MakeEvent() {
  cudaEvent_t event = nullptr;
  RETURN_IF_ERROR(
      ToStatus(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "cudaEventCreate"));
  return Event(event);
}

absl::Status Record(const Event& event, const OwnedStream& stream) {
  return ToStatus(cudaEventRecord(event.get(), stream.get()), "cudaEventRecord");
}

absl::Status WaitFor(const Event& event, const OwnedStream& stream) {
  return ToStatus(cudaStreamWaitEvent(stream.get(), event.get(), 0), "cudaStreamWaitEvent");
}

absl::StatusOr<bool> Done(const Event& event) {
  const cudaError_t error = cudaEventQuery(event.get());
  if (error == cudaErrorNotReady) return false;
  RETURN_IF_ERROR(ToStatus(error, "cudaEventQuery"));
  return true;
}

absl::Status Synchronize(const OwnedStream& stream) {
  return ToStatus(cudaStreamSynchronize(stream.get()), "cudaStreamSynchronize");
}

absl::Status Synchronize(const Event& event) {
  return ToStatus(cudaEventSynchronize(event.get()), "cudaEventSynchronize");
}

absl::Status CopyAsync(void* to, const void* from, size_t bytes, const OwnedStream& stream) {
  if (bytes == 0) return absl::OkStatus();
  return ToStatus(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream.get()),
                  "cudaMemcpyAsync");
}

absl::Status ClearAsync(void* to, size_t bytes, const OwnedStream& stream) {
  if (bytes == 0) return absl::OkStatus();
  return ToStatus(cudaMemsetAsync(to, 0, bytes, stream.get()), "cudaMemsetAsync");
}

bool CanCapture() { return true; }

absl::Status BeginCapture(const OwnedStream& stream) {
  return ToStatus(cudaStreamBeginCapture(stream.get(), cudaStreamCaptureModeThreadLocal),
                  "cudaStreamBeginCapture");
}

absl::StatusOr<Graph> EndCapture(const OwnedStream& stream, const absl::Status& recorded) {
  cudaGraph_t raw = nullptr;
  const absl::Status ended =
      ToStatus(cudaStreamEndCapture(stream.get(), &raw), "cudaStreamEndCapture");
  const std::unique_ptr<CUgraph_st, cudaError_t (*)(cudaGraph_t)> graph(raw, cudaGraphDestroy);
  RETURN_IF_ERROR(recorded);
  RETURN_IF_ERROR(ended);
  cudaGraphExec_t exec = nullptr;
  RETURN_IF_ERROR(ToStatus(cudaGraphInstantiate(&exec, graph.get(), 0), "cudaGraphInstantiate"));
  return Graph(exec);
}

absl::Status Launch(const Graph& graph, const OwnedStream& stream) {
  return ToStatus(cudaGraphLaunch(graph.get(), stream.get()), "cudaGraphLaunch");
}

absl::Status Pin(void* data, size_t bytes) {
  return ToStatus(cudaHostRegister(data, bytes, cudaHostRegisterDefault), "cudaHostRegister");
}

void Unpin(void* data) { static_cast<void>(cudaHostUnregister(data)); }

}  // namespace switchyard::cuda
