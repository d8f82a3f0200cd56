#include "engine/engine_thread.h"

#include <pthread.h>
#include <time.h>

#include <utility>

namespace switchyard {
namespace {

constexpr size_t kMailboxCapacity = 16384;
// A Post or the destructor wakes the thread at once; this only bounds a wait.
constexpr absl::Duration kIdleWait = absl::Seconds(60);

}  // namespace

EngineThread::EngineThread(std::unique_ptr<Engine> engine,
                           std::function<void(std::vector<EngineOutput>)> on_outputs,
                           std::function<void(absl::Status)> on_failure)
    : engine_(std::move(engine)),
      on_outputs_(std::move(on_outputs)),
      on_failure_(std::move(on_failure)),
      mailbox_(kMailboxCapacity),
      thread_([this] { Run(); }) {}

EngineThread::~EngineThread() {
  stop_.store(true);
  mailbox_.Close();
  thread_.join();
}

bool EngineThread::Post(Task task) { return mailbox_.Post(std::move(task)); }

uint64_t EngineThread::cpu_ms() const {
  clockid_t clock;
  timespec t{};
  // The handle stays valid until the destructor joins.
  if (pthread_getcpuclockid(const_cast<std::thread&>(thread_).native_handle(), &clock) != 0 ||
      clock_gettime(clock, &t) != 0) {
    return 0;
  }
  return static_cast<uint64_t>(t.tv_sec) * 1000 + static_cast<uint64_t>(t.tv_nsec) / 1'000'000;
}

void EngineThread::Run() {
  bool failed = false, work = false;
  while (!stop_.load()) {
    for (Task& task : mailbox_.Take(work ? absl::ZeroDuration() : kIdleWait)) task(*engine_);
    work = !failed && engine_->HasWork();
    busy_.store(work, std::memory_order_relaxed);
    if (!work || stop_.load()) continue;
    auto outputs = engine_->Step();
    if (!outputs.ok()) {
      failed = true;
      work = false;
      busy_.store(false, std::memory_order_relaxed);
      on_failure_(outputs.status());
      continue;
    }
    steps_.fetch_add(1, std::memory_order_relaxed);
    if (!outputs->empty()) on_outputs_(*std::move(outputs));
    work = engine_->HasWork();
  }
  // What was accepted runs: somebody may wait for its answer.
  for (Task& task : mailbox_.Take(absl::ZeroDuration())) task(*engine_);
}

}  // namespace switchyard
