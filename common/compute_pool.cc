#include "common/compute_pool.h"

#include <algorithm>
#include <chrono>

#include "common/check.h"

namespace switchyard {
namespace {
// Long enough to bridge the gap between two kernels of a step, short enough that an idle pool, or
// one that shares its cores with another process, costs nothing that shows.
constexpr std::chrono::microseconds kSpin{30};
// Numbers moved by a task of ForRanges at least: some microseconds, what it takes to wake a thread.
constexpr size_t kRangeCost = size_t{1} << 14;
}  // namespace

struct ComputePool::Job {
  FunctionRef<void(size_t, int)> task;
  size_t count;
  std::atomic<size_t> next{0};   // first task that nobody has taken
  std::atomic<size_t> done{0};   // tasks that are finished
  std::atomic<int> visitors{0};  // workers that have not yet left this job
};

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

void ComputePool::Drain(Job& job, int thread) {
  for (size_t i; (i = job.next.fetch_add(1, std::memory_order_relaxed)) < job.count;) {
    job.task(i, thread);
    job.done.fetch_add(1, std::memory_order_release);
  }
}

void ComputePool::ParallelFor(size_t count, FunctionRef<void(size_t, int)> task) {
  if (workers_.empty() || count <= 1) {
    for (size_t i = 0; i < count; ++i) task(i, 0);
    return;
  }
  Job job{task, count};
  job.visitors.store(static_cast<int>(workers_.size()), std::memory_order_relaxed);
  job_.store(&job, std::memory_order_release);
  epoch_.fetch_add(1, std::memory_order_release);
  epoch_.notify_all();
  Drain(job, 0);
  // Every worker passes through each job once, so that none can hold a stale pointer to it.
  while (job.visitors.load(std::memory_order_acquire) != 0) {
    std::this_thread::yield();
  }
  SY_CHECK(job.done.load(std::memory_order_acquire) == count);
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
    while (epoch_.load(std::memory_order_acquire) == seen) {
      if (std::chrono::steady_clock::now() - start > kSpin) epoch_.wait(seen);
    }
    ++seen;  // one job per epoch: the caller waits for all workers before it posts the next
    if (stop_.load()) return;
    Job* job = job_.load(std::memory_order_acquire);
    Drain(*job, thread);
    job->visitors.fetch_sub(1, std::memory_order_release);
  }
}

}  // namespace switchyard
