#include "engine/engine_thread.h"

#include <pthread.h>
#include <time.h>

#include <utility>

#include "common/check.h"

namespace switchyard {
namespace {

constexpr size_t kMailboxCapacity = 16384;
// A Post or the destructor wakes the thread at once; this only bounds a wait.
constexpr absl::Duration kIdleWait = absl::Seconds(60);

std::unique_ptr<EventFd> MakeEventFd() {
  auto fd = EventFd::Create();
  SY_CHECK_MSG(fd.ok(), fd.status().ToString());  // as a thread that cannot be started
  return *std::move(fd);
}

}  // namespace

EngineThread::EngineThread(std::unique_ptr<Engine> engine,
                           std::function<void(std::vector<EngineOutput>)> on_outputs,
                           std::function<void(absl::Status)> on_failure, StepGroup* group)
    : engine_(std::move(engine)),
      on_outputs_(std::move(on_outputs)),
      on_failure_(std::move(on_failure)),
      group_(group),
      mail_(group != nullptr ? MakeEventFd() : nullptr),
      mailbox_(kMailboxCapacity,
               group != nullptr ? [fd = mail_.get()] { fd->Signal(); } : std::function<void()>()),
      thread_([this] { Run(); }) {}

EngineThread::~EngineThread() {
  stop_.store(true);
  mailbox_.Close();
  thread_.join();
}

bool EngineThread::Post(Task task) { return mailbox_.Post(std::move(task)); }

uint64_t EngineThread::signs_of_life() const {
  clockid_t clock;
  timespec t{};
  // The handle stays valid until the destructor joins.
  if (pthread_getcpuclockid(const_cast<std::thread&>(thread_).native_handle(), &clock) == 0) {
    clock_gettime(clock, &t);
  }
  const uint64_t cpu_ms =
      static_cast<uint64_t>(t.tv_sec) * 1000 + static_cast<uint64_t>(t.tv_nsec) / 1'000'000;
  return cpu_ms + (group_ != nullptr ? group_->waits() : 0);
}

std::vector<EngineThread::Task> EngineThread::TakeTasks(bool work, bool failed) {
  if (group_ == nullptr || failed) return mailbox_.Take(work ? absl::ZeroDuration() : kIdleWait);
  if (!work && !stop_.load()) group_->Sleep(mail_->fd(), kIdleWait);
  mail_->Clear();  // before the mail is taken: what comes after it wakes again
  return mailbox_.Take(absl::ZeroDuration());
}

void EngineThread::Run() {
  bool failed = false, work = false;
  if (group_ != nullptr) {
    const absl::Status formed = group_->Form();
    failed = !formed.ok();
    if (failed) on_failure_(formed);
  }
  while (!stop_.load()) {
    for (Task& task : TakeTasks(work, failed)) task(*engine_);
    work = !failed && engine_->HasWork();
    busy_.store(work, std::memory_order_relaxed);
    if (!work || stop_.load()) continue;
    auto outputs = engine_->Step();
    if (group_ != nullptr && absl::IsUnavailable(outputs.status())) {
      const absl::Status formed = group_->Form();
      if (formed.ok()) continue;  // the step runs again: nothing of it counted
      outputs = formed;
    }
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
