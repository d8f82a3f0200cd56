// common/cuda/device.h: handles of a CUDA device, freed with their owners: device and pinned
// memory, streams, events, graphs. device.cc implements it by the CUDA runtime (only under
// --config=cuda, docs/cuda.md), host_device.cc by the host's memory for the kernels that tests run
// there: then everything is done when a call returns.
//
// Threads: a handle belongs to one thread at a time; OpenDevice or UseDevice makes the device that
// thread's.
#pragma once

#include <cstddef>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

struct CUstream_st;
struct CUevent_st;
struct CUgraphExec_st;

namespace switchyard::cuda {

// What a model asks of a device, read once.
struct DeviceProperties {
  int index = 0;
  std::string name;
  int major = 0, minor = 0;  // compute capability
  int multiprocessors = 0;
  size_t shared_bytes = 0;  // of one block, at most
  size_t memory_bytes = 0, free_bytes = 0;
};
// Makes device `index` the calling thread's. kFailedPrecondition says why there is none: no driver,
// no such device, a driver older than the runtime, a compute capability below 8.0.
absl::StatusOr<DeviceProperties> OpenDevice(int index);
// For another thread that uses the handles.
absl::Status UseDevice(int index);

// Bytes in the memory of the device, or of the host, pinned: copies between the two run beside the
// computation.
enum class Memory { kDevice, kPinned };
template <Memory kind>
class Buffer {
 public:
  // Not cleared. kResourceExhausted names the size and what is free.
  static absl::StatusOr<Buffer> Create(size_t bytes);
  Buffer() = default;
  Buffer(Buffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  ~Buffer();

  std::byte* data() const { return data_; }
  size_t size() const { return size_; }
  template <typename T>
  T* as() const {
    return reinterpret_cast<T*>(data_);
  }

 private:
  std::byte* data_ = nullptr;
  size_t size_ = 0;
};
using DeviceBuffer = Buffer<Memory::kDevice>;
using PinnedBuffer = Buffer<Memory::kPinned>;

// Device memory that is taken piece by piece and given back as a whole, in slabs of `slab_bytes`;
// pieces above a quarter of that are allocations of their own, so that little of a slab is lost.
class DeviceArena {
 public:
  explicit DeviceArena(size_t slab_bytes) : slab_bytes_(slab_bytes) {}
  // 256-byte aligned. Valid as long as the arena.
  absl::StatusOr<std::byte*> Allocate(size_t bytes);
  template <typename T>
  absl::StatusOr<T*> Allocate(size_t count) {
    const absl::StatusOr<std::byte*> data = Allocate(count * sizeof(T));
    if (!data.ok()) return data.status();
    return reinterpret_cast<T*>(*data);
  }
  size_t held_bytes() const { return held_; }  // of the device, with what is still free in slabs

 private:
  absl::StatusOr<std::byte*> Hold(size_t bytes, std::vector<DeviceBuffer>* in);

  const size_t slab_bytes_;
  std::vector<DeviceBuffer> slabs_, large_;
  size_t at_ = 0, held_ = 0;  // at_: in the last slab
};

// Destroys the CUDA object of a handle.
void Destroy(CUstream_st* stream);
void Destroy(CUevent_st* event);
void Destroy(CUgraphExec_st* graph);

template <typename T>
class Handle {
 public:
  Handle() = default;
  explicit Handle(T* handle) : handle_(handle) {}
  Handle(Handle&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
  Handle& operator=(Handle&& other) noexcept {
    std::swap(handle_, other.handle_);
    return *this;
  }
  ~Handle() {
    if (handle_ != nullptr) Destroy(handle_);
  }
  T* get() const { return handle_; }
  explicit operator bool() const { return handle_ != nullptr; }

 private:
  T* handle_ = nullptr;
};
using OwnedStream = Handle<CUstream_st>;
using Event = Handle<CUevent_st>;
using Graph = Handle<CUgraphExec_st>;

absl::StatusOr<OwnedStream> MakeStream();
absl::StatusOr<Event> MakeEvent();  // without timing
absl::Status Record(const Event& event, const OwnedStream& stream);
// What is given to `stream` from now on runs after what `event` recorded.
absl::Status WaitFor(const Event& event, const OwnedStream& stream);
// Whether all that `event` recorded is done. Never blocks.
absl::StatusOr<bool> Done(const Event& event);
// These two block the calling thread.
absl::Status Synchronize(const OwnedStream& stream);
absl::Status Synchronize(const Event& event);

// Between any two memories; from or to host memory that is not pinned the call may block. No bytes:
// nothing.
absl::Status CopyAsync(void* to, const void* from, size_t bytes, const OwnedStream& stream);
absl::Status ClearAsync(void* to, size_t bytes, const OwnedStream& stream);

// Whether launches can be recorded, to be run again with the same pointers.
bool CanCapture();
absl::Status BeginCapture(const OwnedStream& stream);
// `recorded`: how the recording ended; an error is returned, and nothing is left of it.
absl::StatusOr<Graph> EndCapture(const OwnedStream& stream, const absl::Status& recorded);
absl::Status Launch(const Graph& graph, const OwnedStream& stream);

// Pins memory that was allocated otherwise; `data` and `bytes` are multiples of a page. Undone by
// Unpin, before the memory is given back.
absl::Status Pin(void* data, size_t bytes);
void Unpin(void* data);

}  // namespace switchyard::cuda
