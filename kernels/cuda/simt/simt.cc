#include "kernels/cuda/simt/simt.h"

#include <sys/mman.h>

#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#include "common/check.h"
#include "kernels/cuda/simt/fiber.h"

namespace switchyard::simt {
namespace {

// Limits of sm_80 and sm_90 alike but for shared memory (CUDA C++ Programming Guide, table of
// technical specifications), which is of a block after opting in.
constexpr unsigned kThreadsMax = 1024;
constexpr unsigned kBlocksMax[3] = {2147483647u, 65535u, 65535u};
constexpr size_t kSharedMax = 163 * 1024, kSharedMaxOfHopper = 227 * 1024;

constexpr int kLanes = 32, kBarriers = 16;
constexpr size_t kExchangeMax = 64;

struct Copy {
  void* to;
  const void* from;
  bool valid;
};

enum class State { kReady, kAtBarrier, kInWarp, kDone };

struct Thread {
  Place place;
  Fiber fiber;
  State state = State::kReady;
  int barrier = 0;
  unsigned exchanges = 0;  // done so far: which of the two buffers is next
  std::vector<std::vector<Copy>> copies{1};
};

struct Warp {
  const char* operation = nullptr;  // of who waits
  size_t bytes = 0;
  int here = 0;
  alignas(64) std::byte data[2][kLanes * kExchangeMax];
};

struct FreeShared {
  void operator()(std::byte* p) const { ::operator delete (p, std::align_val_t{1024}); }
};

// One block at a time; its memory serves all blocks of a launch.
class Machine {
 public:
  Machine(const char* name, const Shape& shape, FunctionRef<void()> kernel, std::mt19937_64& rng,
          bool permute)
      : name_(name),
        shape_(shape),
        kernel_(kernel),
        rng_(rng),
        permute_(permute),
        threads_(shape.threads),
        warps_(shape.threads / kLanes),
        shared_(static_cast<std::byte*>(
            ::operator new (shape.shared_bytes + 1, std::align_val_t{1024}))) {}

  void RunBlock(Dim block);

  Thread& current() { return *current_; }
  const char* name() const { return name_; }
  std::byte* shared() const { return shared_.get(); }
  size_t shared_bytes() const { return shape_.shared_bytes; }
  void Leave(State state) {
    current_->state = state;
    current_->fiber.Leave();
  }
  void AtBarrier(int id, unsigned threads);
  const std::byte* InWarp(const char* operation, const void* mine, size_t bytes);
  void Progress() { idle_turns_ = 0; }

 private:
  void OpenBarriers();
  void Turn();

  const char* name_;
  const Shape& shape_;
  FunctionRef<void()> kernel_;
  std::mt19937_64& rng_;
  bool permute_;
  std::vector<Thread> threads_;
  std::vector<Warp> warps_;
  std::unique_ptr<std::byte, FreeShared> shared_;
  Thread* current_ = nullptr;
  unsigned done_ = 0;
  int waiting_[kBarriers] = {};
  unsigned wanted_[kBarriers] = {};
  int idle_turns_ = 0;
};

thread_local Machine* machine = nullptr;
thread_local std::mt19937_64 order_rng{0};
thread_local bool order_permutes = false;

Machine& M() {
  SY_CHECK_MSG(machine != nullptr, "device code outside a kernel");
  return *machine;
}

void Machine::RunBlock(Dim block) {
  std::memset(shared_.get(), 0xff, shape_.shared_bytes);  // NaN in every type
  done_ = 0;
  std::fill_n(waiting_, kBarriers, 0);
  for (Warp& w : warps_) w.here = 0;
  for (unsigned t = 0; t < shape_.threads; ++t) {
    Thread& thread = threads_[t];
    thread.place = {{t, 0, 0}, block, {shape_.threads, 1, 1}, shape_.blocks};
    thread.state = State::kReady;
    thread.exchanges = 0;
    thread.copies.assign(1, {});
    thread.fiber.Start(
        [](void* m) {
          auto* self = static_cast<Machine*>(m);
          self->kernel_();
          ++self->done_;
          self->Leave(State::kDone);
        },
        this);
  }
  while (done_ < shape_.threads) Turn();
}

// Every thread that can run runs until it must wait.
void Machine::Turn() {
  std::vector<unsigned> order(threads_.size());
  std::iota(order.begin(), order.end(), 0u);
  if (permute_) std::shuffle(order.begin(), order.end(), rng_);
  bool ran = false;
  for (const unsigned t : order) {
    if (threads_[t].state != State::kReady) continue;
    ran = true;
    current_ = &threads_[t];
    current_->fiber.Enter();
  }
  OpenBarriers();
  SY_CHECK_MSG(
      ran || done_ == threads_.size(), name_, ": block (", threads_[0].place.block.x, ",",
      threads_[0].place.block.y, "): ", done_, " of ", threads_.size(),
      " threads are done and the others wait: at barrier 0: ", waiting_[0],
      ", in warp operation: ", warps_[0].here > 0 ? warps_[0].operation : "none of warp 0");
  SY_CHECK_MSG(++idle_turns_ < 100000, name_, ": nobody but who waits for a flag");
}

void Machine::OpenBarriers() {
  for (int id = 0; id < kBarriers; ++id) {
    if (waiting_[id] == 0) continue;
    const unsigned wanted = wanted_[id] > 0 ? wanted_[id] : shape_.threads - done_;
    SY_CHECK_MSG(static_cast<unsigned>(waiting_[id]) <= wanted, name_, ": barrier ", id, ": ",
                 waiting_[id], " of ", wanted, " threads");
    if (static_cast<unsigned>(waiting_[id]) < wanted) continue;
    for (Thread& t : threads_) {
      if (t.state == State::kAtBarrier && t.barrier == id) t.state = State::kReady;
    }
    waiting_[id] = 0;
    Progress();
  }
}

void Machine::AtBarrier(int id, unsigned threads) {
  SY_CHECK(id >= 0 && id < kBarriers);
  SY_CHECK_MSG(waiting_[id] == 0 || wanted_[id] == threads, name_, ": barrier ", id);
  wanted_[id] = threads;
  ++waiting_[id];
  current_->barrier = id;
  Leave(State::kAtBarrier);
}

const std::byte* Machine::InWarp(const char* operation, const void* mine, size_t bytes) {
  SY_CHECK_MSG(bytes <= kExchangeMax, operation);
  const unsigned thread = current_->place.thread.x;
  Warp& warp = warps_[thread / kLanes];
  SY_CHECK_MSG(
      warp.here == 0 || (std::strcmp(warp.operation, operation) == 0 && warp.bytes == bytes), name_,
      ": thread ", thread, " is at ", operation, ", others of its warp at ", warp.operation);
  warp.operation = operation;
  warp.bytes = bytes;
  std::byte* data = warp.data[current_->exchanges++ % 2];
  std::memcpy(data + thread % kLanes * bytes, mine, bytes);
  if (++warp.here < kLanes) {
    Leave(State::kInWarp);
    return data;
  }
  warp.here = 0;
  for (int i = 0; i < kLanes; ++i) {
    Thread& other = threads_[thread / kLanes * kLanes + i];
    if (other.state == State::kInWarp) other.state = State::kReady;
  }
  Progress();
  return data;
}

}  // namespace

const Place& Here() { return M().current().place; }

void SetOrder(uint64_t seed) {
  order_rng.seed(seed);
  order_permutes = seed != 0;
}

void Run(const char* name, const Shape& shape, FunctionRef<void()> kernel) {
  SY_CHECK_MSG(machine == nullptr, name, ": launched from a kernel");
  SY_CHECK_MSG(shape.threads >= 1 && shape.threads <= kThreadsMax && shape.threads % kLanes == 0,
               name, ": ", shape.threads, " threads");
  const unsigned blocks[3] = {shape.blocks.x, shape.blocks.y, shape.blocks.z};
  for (int i = 0; i < 3; ++i) {
    SY_CHECK_MSG(blocks[i] >= 1 && blocks[i] <= kBlocksMax[i], name, ": ", blocks[i], " blocks");
  }
  SY_CHECK_MSG(shape.shared_bytes <= (shape.hopper ? kSharedMaxOfHopper : kSharedMax), name, ": ",
               shape.shared_bytes, " bytes of shared memory");
  std::vector<uint64_t> order(uint64_t{blocks[0]} * blocks[1] * blocks[2]);
  std::iota(order.begin(), order.end(), uint64_t{0});
  if (order_permutes) std::shuffle(order.begin(), order.end(), order_rng);
  Machine m(name, shape, kernel, order_rng, order_permutes);
  machine = &m;
  for (const uint64_t i : order) {
    m.RunBlock({static_cast<unsigned>(i % blocks[0]),
                static_cast<unsigned>(i / blocks[0] % blocks[1]),
                static_cast<unsigned>(i / blocks[0] / blocks[1])});
  }
  machine = nullptr;
}

std::byte* Shared() { return M().shared(); }

uint32_t SharedOffset(const void* p) {
  const auto* byte = static_cast<const std::byte*>(p);
  SY_CHECK_MSG(byte >= M().shared() && byte < M().shared() + M().shared_bytes(), M().name(),
               ": an address outside shared memory");
  return static_cast<uint32_t>(byte - M().shared());
}

void Barrier(int id, unsigned threads) { M().AtBarrier(id, threads); }

const std::byte* Exchange(const char* operation, const void* mine, size_t bytes) {
  return M().InWarp(operation, mine, bytes);
}

void Yield() { M().Leave(State::kReady); }

void CopyAsync(void* shared, const void* global, bool valid) {
  SY_CHECK_MSG(SharedOffset(shared) % 16 == 0 && reinterpret_cast<uintptr_t>(global) % 16 == 0,
               M().name(), ": cp.async of 16 bytes that are not aligned");
  M().current().copies.back().push_back({shared, global, valid});
}

void CommitCopies() { M().current().copies.emplace_back(); }

void WaitCopies(int groups_left) {
  auto& groups = M().current().copies;
  // The last is open.
  while (static_cast<int>(groups.size()) - 1 > groups_left) {
    for (const Copy& c : groups.front()) {
      if (c.valid) {
        std::memcpy(c.to, c.from, 16);
      } else {
        std::memset(c.to, 0, 16);
      }
    }
    groups.erase(groups.begin());
  }
}

}  // namespace switchyard::simt
