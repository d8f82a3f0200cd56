// common/compute_pool.h: the threads that do arithmetic. One caller at a time (the engine thread),
// which works too: a pool of 1 has no thread of its own. Idle workers look for work for a bounded
// time (tens of microseconds) and then sleep on a futex: an idle pool uses no CPU. A worker that
// is late, because it slept or another process has its core, delays nobody: its tasks are done by
// those who are there.
#pragma once

#include <atomic>
#include <cstddef>
#include <exception>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

namespace switchyard {

// A callable borrowed for the length of a call: no allocation, unlike std::function.
template <typename Signature>
class FunctionRef;
template <typename R, typename... Args>
class FunctionRef<R(Args...)> {
 public:
  template <typename F>
  requires(!std::is_same_v<std::remove_cvref_t<F>, FunctionRef>)
      FunctionRef(F&& f)  // NOLINT: implicit on purpose
      : object_(const_cast<void*>(static_cast<const void*>(&f))),
        call_([](void* o, Args... args) -> R {
          return (*static_cast<std::remove_reference_t<F>*>(o))(std::forward<Args>(args)...);
        }) {}
  R operator()(Args... args) const { return call_(object_, std::forward<Args>(args)...); }

 private:
  void* object_;
  R (*call_)(void*, Args...);
};

class ComputePool {
 public:
  // `threads` >= 1 counts the caller.
  explicit ComputePool(int threads);
  ~ComputePool();
  ComputePool(const ComputePool&) = delete;
  ComputePool& operator=(const ComputePool&) = delete;

  int threads() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls task(i, thread) for every i in [0, count), each once, on any thread in [0, threads()),
  // and returns when all are done. Which thread takes which task is not fixed: a task's result must
  // not depend on it. Not reentrant. count < 2^32. What a task throws (bad_alloc) is thrown here,
  // the first of it, when the others are done.
  void ParallelFor(size_t count, FunctionRef<void(size_t task, int thread)> task);

  // Calls body(begin, end, thread) for ranges that cover [0, count), each item in one of them: in
  // parallel if that is worth waking a thread. `cost` of an item is in numbers loaded and stored.
  void ForRanges(size_t count, size_t cost,
                 FunctionRef<void(size_t begin, size_t end, int thread)> body);

 private:
  void Work(int thread);
  // Takes and does tasks of the job that is posted until none is left.
  void Drain(int thread);

  std::vector<std::thread> workers_;
  // The job: written by the caller while no task is left, read by who has taken one.
  const FunctionRef<void(size_t, int)>* task_ = nullptr;
  size_t count_ = 0;
  // High half: the job's number, so that a late worker cannot take a task of another job for one of
  // its own. Low half: tasks that nobody has taken. On a cache line of its own, as `done_` is.
  alignas(64) std::atomic<uint64_t> ticket_{0};
  alignas(64) std::atomic<size_t> done_{0};     // tasks that are finished
  alignas(64) std::atomic<uint32_t> epoch_{0};  // futex: changes with each job, and at the end
  std::atomic<bool> stop_{false};
  std::atomic<bool> failed_{false};  // a task of the job has thrown `error_`
  std::exception_ptr error_;
};

}  // namespace switchyard
