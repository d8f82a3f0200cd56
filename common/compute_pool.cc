#include "common/compute_pool.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "common/check.h"

namespace switchyard {
namespace {
// Long enough to bridge the gap between two kernels of a step, short enough that an idle pool, or
// one that shares its cores with another process, costs nothing that shows.
constexpr std::chrono::microseconds kSpin{30};
// Numbers moved by a task of ForRanges at least: some microseconds, what it takes to wake a thread.
constexpr size_t kRangeCost = size_t{1} << 14;
}  // namespace

ComputePool::ComputePool(int threads) {
  SY_CHECK_MSG(threads >= 1, "threads ", threads);
  for (int i = 1; i < threads; ++i) workers_.emplace_back([this, i] { Work(i); });
}

ComputePool::~ComputePool() {
  stop_.store(true);
  epoch_.fetch_add(1);
  epoch_.notify_all();
  for (auto& w : workers_) w.join();
}

void ComputePool::Drain(int thread) {
  uint64_t ticket = ticket_.load(std::memory_order_acquire);
  while (static_cast<uint32_t>(ticket) != 0) {
    if (!ticket_.compare_exchange_weak(ticket, ticket - 1, std::memory_order_acquire)) continue;
    // The job cannot end before this task has: what it consists of does not change.
    try {
      (*task_)(count_ - static_cast<uint32_t>(ticket), thread);
    } catch (...) {
      if (!failed_.exchange(true)) error_ = std::current_exception();
    }
    done_.fetch_add(1, std::memory_order_release);
    ticket = ticket_.load(std::memory_order_acquire);
  }
}

void ComputePool::ParallelFor(size_t count, FunctionRef<void(size_t, int)> task) {
  if (workers_.empty() || count <= 1) {
    for (size_t i = 0; i < count; ++i) task(i, 0);
    return;
  }
  SY_CHECK_MSG(count <= UINT32_MAX, "tasks ", count);
  task_ = &task;
  count_ = count;
  done_.store(0, std::memory_order_relaxed);
  const uint64_t job = (ticket_.load(std::memory_order_relaxed) >> 32) + 1;
  ticket_.store(job << 32 | count, std::memory_order_release);
  epoch_.fetch_add(1, std::memory_order_release);
  epoch_.notify_all();
  Drain(0);
  const auto start = std::chrono::steady_clock::now();
  while (done_.load(std::memory_order_acquire) != count) {
    // Its last task may be another thread's that waits for this core.
    if (std::chrono::steady_clock::now() - start > kSpin) std::this_thread::yield();
  }
  if (failed_.load(std::memory_order_relaxed)) {
    failed_.store(false, std::memory_order_relaxed);
    std::rethrow_exception(std::exchange(error_, nullptr));
  }
}

void ComputePool::ForRanges(size_t count, size_t cost,
                            FunctionRef<void(size_t, size_t, int)> body) {
  if (count == 0) return;
  const size_t worth = count * cost / kRangeCost + 1;
  const size_t tasks = std::min({count, worth, 4 * static_cast<size_t>(threads())});
  ParallelFor(tasks, [&](size_t task, int thread) {
    body(task * count / tasks, (task + 1) * count / tasks, thread);
  });
}

void ComputePool::Work(int thread) {
  uint32_t seen = 0;
  for (;;) {
    const auto start = std::chrono::steady_clock::now();
    uint32_t epoch;
    while ((epoch = epoch_.load(std::memory_order_acquire)) == seen) {
      if (std::chrono::steady_clock::now() - start > kSpin) epoch_.wait(seen);
    }
    seen = epoch;
    if (stop_.load()) return;
    Drain(thread);
  }
}

}  // namespace switchyard
