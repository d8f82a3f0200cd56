// The host in the place of a device, for tests of what runs on one: device memory is the host's,
// and every call is done when it returns, as the kernels of the simt library are.
#include <cstring>
#include <new>

#include "absl/strings/str_cat.h"
#include "common/cuda/device.h"

namespace switchyard::cuda {
namespace {
constexpr std::align_val_t kAlignment{256};
}  // namespace

absl::StatusOr<DeviceProperties> OpenDevice(int index) {
  if (index == 0) return DeviceProperties{.name = "host", .major = 8, .shared_bytes = 163 << 10};
  return absl::FailedPreconditionError(absl::StrCat("device ", index, ": the host is one"));
}
absl::Status UseDevice(int) { return absl::OkStatus(); }

template <Memory kind>
absl::StatusOr<Buffer<kind>> Buffer<kind>::Create(size_t bytes) {
  Buffer buffer;
  if (bytes == 0) return buffer;
  buffer.data_ = static_cast<std::byte*>(::operator new(bytes, kAlignment));
  buffer.size_ = bytes;
  std::memset(buffer.data_, 0xff, bytes);  // NaN: what reads before it writes shows
  return buffer;
}
template <Memory kind>
Buffer<kind>::~Buffer() {
  ::operator delete(data_, kAlignment);
}
template class Buffer<Memory::kDevice>;
template class Buffer<Memory::kPinned>;

void Destroy(CUstream_st*) {}
void Destroy(CUevent_st*) {}
void Destroy(CUgraphExec_st*) {}
absl::StatusOr<OwnedStream> MakeStream() { return OwnedStream(); }
absl::StatusOr<Event> MakeEvent() { return Event(); }
absl::Status Record(const Event&, const OwnedStream&) { return absl::OkStatus(); }
absl::Status WaitFor(const Event&, const OwnedStream&) { return absl::OkStatus(); }
absl::StatusOr<bool> Done(const Event&) { return true; }
absl::Status Synchronize(const OwnedStream&) { return absl::OkStatus(); }
absl::Status Synchronize(const Event&) { return absl::OkStatus(); }

absl::Status CopyAsync(void* to, const void* from, size_t bytes, const OwnedStream&) {
  if (bytes > 0) std::memcpy(to, from, bytes);
  return absl::OkStatus();
}
absl::Status ClearAsync(void* to, size_t bytes, const OwnedStream&) {
  if (bytes > 0) std::memset(to, 0, bytes);
  return absl::OkStatus();
}

bool CanCapture() { return false; }
absl::Status BeginCapture(const OwnedStream&) {
  return absl::UnimplementedError("the host records no graphs");
}
absl::StatusOr<Graph> EndCapture(const OwnedStream&, const absl::Status&) {
  return absl::UnimplementedError("the host records no graphs");
}
absl::Status Launch(const Graph&, const OwnedStream&) {
  return absl::UnimplementedError("the host records no graphs");
}

absl::Status Pin(void*, size_t) { return absl::OkStatus(); }
void Unpin(void*) {}

}  // namespace switchyard::cuda
