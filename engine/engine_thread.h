// engine/engine_thread.h: the one thread that owns an Engine. Others post closures that run on it
// between two steps; it sleeps when there is neither work nor mail.
#pragma once

#include <functional>
#include <memory>
#include <thread>

#include "common/clock.h"
#include "common/event_fd.h"
#include "common/mailbox.h"
#include "engine/engine.h"

namespace switchyard {

class EngineThread {
 public:
  using Task = std::function<void(Engine&)>;
  // `on_outputs` is called on the engine thread after each step that had outputs: it must not
  // block. `on_failure` is called once if a step fails for the rank as a whole; the thread then
  // only runs tasks. With a `group` (the engine's), the thread forms it first, forms it anew and
  // runs the step again when a peer is lost, and sleeps where the group hears its peers.
  EngineThread(std::unique_ptr<Engine> engine,
               std::function<void(std::vector<EngineOutput>)> on_outputs,
               std::function<void(absl::Status)> on_failure, StepGroup* group = nullptr);
  ~EngineThread();  // stops after the current step

  // Runs `task` on the engine thread before the next step. False if the mailbox is full (16,384) or
  // the thread is stopping.
  [[nodiscard]] bool Post(Task task);

  // Steps finished so far; a heartbeat carries it, so that a stuck engine shows. Thread-safe.
  uint64_t steps() const { return steps_.load(std::memory_order_relaxed); }
  // Layers computed so far, also of a step under way. Thread-safe.
  uint64_t progress() const { return engine_->progress(); }
  // Grows while the thread uses CPU time (by its milliseconds) or waits for its group (by turns):
  // that of a starved engine grows a little, that of a blocked one stands still. Thread-safe.
  uint64_t signs_of_life() const;
  // True while the engine has something to compute. Thread-safe.
  bool busy() const { return busy_.load(std::memory_order_relaxed); }

 private:
  void Run();
  // What has been posted; with nothing to do, once something is or a step is wanted.
  std::vector<Task> TakeTasks(bool work, bool failed);

  const std::unique_ptr<Engine> engine_;
  const std::function<void(std::vector<EngineOutput>)> on_outputs_;
  const std::function<void(absl::Status)> on_failure_;
  StepGroup* const group_;
  std::unique_ptr<EventFd> mail_;  // with a group: it cannot wait for the mailbox itself
  Mailbox<Task> mailbox_;
  std::atomic<uint64_t> steps_{0};
  std::atomic<bool> busy_{false};
  std::atomic<bool> stop_{false};
  std::thread thread_;  // last: starts when everything above exists
};

}  // namespace switchyard
