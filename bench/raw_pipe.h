// bench/raw_pipe.h: bytes between two processes with nothing of ours on the way: what the lanes of
// the benchmarks are measured against.
#pragma once

#include <sched.h>

#include <cstddef>
#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"

namespace switchyard {

// A connection that moves what it can without blocking; 0 if it cannot now.
class Pipe {
 public:
  virtual ~Pipe() = default;
  virtual size_t Write(const std::byte* from, size_t bytes) = 0;
  virtual size_t Read(std::byte* to, size_t bytes) = 0;
};

// All of `bytes`, in this direction alone.
template <typename Move>
void Whole(size_t bytes, Move move) {
  for (size_t done = 0; done < bytes;) {
    const size_t n = move(done);
    if (n == 0) sched_yield();
    done += n;
  }
}

// A loopback TCP socket that one peer may dial.
class LoopbackListener {
 public:
  static absl::StatusOr<LoopbackListener> Create();
  LoopbackListener(LoopbackListener&& other) noexcept;
  ~LoopbackListener();
  uint16_t port() const { return port_; }
  // Null if nobody came within 10 s.
  std::unique_ptr<Pipe> Accept() const;

 private:
  LoopbackListener(int fd, uint16_t port) : fd_(fd), port_(port) {}
  int fd_;
  uint16_t port_;
};
// Null if nobody listens.
std::unique_ptr<Pipe> ConnectLoopback(uint16_t port);

}  // namespace switchyard
