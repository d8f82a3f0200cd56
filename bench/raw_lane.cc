#include "bench/raw_lane.h"

#include <sched.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <memory>
#include <vector>

#include "absl/strings/str_cat.h"
#include "bench/raw_pipe.h"
#include "common/status_macros.h"

namespace switchyard {
namespace {

constexpr size_t kRingBytes = 4 << 20, kChunk = 128 << 10, kMessage = 64;
// Few, and the median or the best of them counts: others may use the cores.
constexpr int kRoundTrips = 400, kExchanges = 5;
constexpr size_t kExchangeBytes = size_t{64} << 20;

double Now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

struct Ring {
  alignas(64) std::atomic<uint64_t> written{0};
  alignas(64) std::atomic<uint64_t> read{0};
  alignas(64) std::byte data[kRingBytes];
};

class RingPipe final : public Pipe {
 public:
  RingPipe(Ring* out, Ring* in) : out_(*out), in_(*in) {}
  size_t Write(const std::byte* from, size_t bytes) override {
    const uint64_t at = out_.written.load(std::memory_order_relaxed);
    if (at + bytes - out_.read.load(std::memory_order_acquire) > kRingBytes) return 0;
    const size_t offset = at % kRingBytes, first = std::min(bytes, kRingBytes - offset);
    std::memcpy(out_.data + offset, from, first);
    std::memcpy(out_.data, from + first, bytes - first);
    out_.written.store(at + bytes, std::memory_order_release);
    return bytes;
  }
  size_t Read(std::byte* to, size_t bytes) override {
    const uint64_t at = in_.read.load(std::memory_order_relaxed);
    if (in_.written.load(std::memory_order_acquire) - at < bytes) return 0;
    const size_t offset = at % kRingBytes, first = std::min(bytes, kRingBytes - offset);
    std::memcpy(to, in_.data + offset, first);
    std::memcpy(to + first, in_.data, bytes - first);
    in_.read.store(at + bytes, std::memory_order_release);
    return bytes;
  }

 private:
  Ring &out_, &in_;
};

// Seconds of one way, half of the median of kRoundTrips round trips. Both ends call it.
double PingPong(Pipe& pipe, bool first) {
  std::byte message[kMessage] = {};
  const auto write = [&] {
    Whole(kMessage, [&](size_t at) { return pipe.Write(message + at, kMessage - at); });
  };
  const auto read = [&] {
    Whole(kMessage, [&](size_t at) { return pipe.Read(message + at, kMessage - at); });
  };
  std::vector<double> seconds;
  for (int i = 0; i < kRoundTrips; ++i) {
    const double begin = Now();
    first ? write() : read();
    first ? read() : write();
    seconds.push_back(Now() - begin);
  }
  std::nth_element(seconds.begin(), seconds.begin() + kRoundTrips / 2, seconds.end());
  return seconds[kRoundTrips / 2] / 2;
}

// Bytes per second of each way while both ways are busy. Both ends call it.
double Exchange(Pipe& pipe) {
  std::vector<std::byte> out(kChunk), in(kChunk);
  const double begin = Now();
  for (size_t sent = 0, got = 0; sent < kExchangeBytes || got < kExchangeBytes;) {
    size_t n = 0;
    if (sent < kExchangeBytes) n += pipe.Write(out.data(), kChunk - sent % kChunk);
    sent += n;
    const size_t m = got < kExchangeBytes ? pipe.Read(in.data(), kChunk - got % kChunk) : 0;
    got += m;
    if (n + m == 0) sched_yield();
  }
  return static_cast<double>(kExchangeBytes) / (Now() - begin);
}

RawLane Measure(Pipe& pipe, bool first) {
  RawLane lane;
  PingPong(pipe, first);  // warm
  lane.alpha_seconds = PingPong(pipe, first);
  for (int i = 0; i < kExchanges; ++i) {
    lane.beta_bytes_per_s = std::max(lane.beta_bytes_per_s, Exchange(pipe));
  }
  return lane;
}

// The second process runs `other` and ends.
template <typename Other, typename Mine>
absl::StatusOr<RawLane> WithOther(Other other, Mine mine) {
  const pid_t pid = fork();
  if (pid < 0) return absl::ErrnoToStatus(errno, "fork");
  if (pid == 0) {
    const std::unique_ptr<Pipe> pipe = other();
    if (pipe != nullptr) Measure(*pipe, false);
    _exit(0);
  }
  const std::unique_ptr<Pipe> pipe = mine();
  absl::StatusOr<RawLane> lane = absl::UnavailableError("no loopback connection");
  if (pipe != nullptr) lane = Measure(*pipe, true);
  waitpid(pid, nullptr, 0);
  return lane;
}

absl::StatusOr<RawLane> MeasureShm() {
  void* memory =
      mmap(nullptr, 2 * sizeof(Ring), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return absl::ErrnoToStatus(errno, "mmap of two rings");
  Ring* rings = static_cast<Ring*>(memory);  // all zero: as constructed
  auto lane = WithOther([&] { return std::make_unique<RingPipe>(&rings[1], &rings[0]); },
                        [&] { return std::make_unique<RingPipe>(&rings[0], &rings[1]); });
  munmap(memory, 2 * sizeof(Ring));
  return lane;
}

absl::StatusOr<RawLane> MeasureTcp() {
  ASSIGN_OR_RETURN(const LoopbackListener listener, LoopbackListener::Create());
  return WithOther([&] { return ConnectLoopback(listener.port()); },
                   [&] { return listener.Accept(); });
}

}  // namespace

absl::StatusOr<RawLane> MeasureRawLane(const std::string& lane) {
  if (lane == "shm") return MeasureShm();
  if (lane == "tcp") return MeasureTcp();
  return absl::InvalidArgumentError(absl::StrCat("lane \"", lane, "\", must be shm or tcp"));
}

}  // namespace switchyard
