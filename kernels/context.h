// kernels/context.h: what every kernel call is given: threads and scratch memory. Owned by the
// engine thread; one call at a time.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <memory>
#include <new>
#include <vector>

#include "common/compute_pool.h"

namespace switchyard {

// Memory that a kernel needs for the length of one call. Grows to the largest request and stays, so
// that a steady-state step allocates nothing.
class Scratch {
 public:
  // `count` elements of T, 64-byte aligned, uninitialised; valid until the next Get of the same
  // slot. A call that needs several arrays at once uses several slots (0…7).
  template <typename T>
  T* Get(int slot, size_t count) {
    static_assert(std::is_trivially_destructible_v<T>);
    Buffer& b = buffers_[slot];
    const size_t bytes = count * sizeof(T);
    if (b.bytes < bytes) {
      b.data.reset(static_cast<std::byte*>(::operator new (bytes, std::align_val_t{64})));
      b.bytes = bytes;
    }
    return reinterpret_cast<T*>(b.data.get());
  }

 private:
  struct Free {
    void operator()(std::byte* p) const { ::operator delete (p, std::align_val_t{64}); }
  };
  struct Buffer {
    std::unique_ptr<std::byte, Free> data;
    size_t bytes = 0;
  };
  Buffer buffers_[8];
};

// Passed by reference to every kernel.
struct KernelContext {
  explicit KernelContext(int threads) : pool(threads), thread_scratch(threads) {}
  ComputePool pool;
  Scratch scratch;                      // of the calling thread
  std::vector<Scratch> thread_scratch;  // [threads], indexed by the task's thread number
};

}  // namespace switchyard
