// moe/ep_progress.h: who moves frames while the engine thread computes. Links are taken further by
// calls only (a full ring's next frame, UCX's sockets, rows that came); with two micro-batches in
// flight a thread makes them, asleep in poll() whenever nothing can be moved.
//
//   engine thread   ─ attention A ─┬ Send A ┬─ attention B ─┬ Send B ┬─ …
//   this thread                    └ waits ─┴─ moves, naps ─┘        └─ moves, naps
//
// One of the two has the group at any moment: Hold is the baton, and a mutex. A thread that naps
// need not be woken for that: who gives the baton back leaves the group as the nap needs it.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <thread>

#include "absl/status/statusor.h"
#include "common/event_fd.h"
#include "common/mutex.h"
#include "moe/ep_group.h"

namespace switchyard {

class EpProgress {
 public:
  // move(): moves what can be moved without blocking; true if anything was. wants_room(peer): as in
  // EpGroup::Wait. Both are called with the baton. `group` outlives this. kResourceExhausted: no
  // descriptors are left.
  static absl::StatusOr<std::unique_ptr<EpProgress>> Create(
      EpGroup* group, std::function<bool()> move, std::function<bool(int peer)> wants_room);
  ~EpProgress();

  // While it lives the caller has the group to itself.
  class Hold {
   public:
    explicit Hold(EpProgress& progress) : progress_(progress) { progress_.Take(); }
    ~Hold() { progress_.Give(); }
    Hold(const Hold&) = delete;
    Hold& operator=(const Hold&) = delete;

   private:
    EpProgress& progress_;
  };

  // Whether the thread is to work, once the caller's Hold ends. While it is not, and after the
  // epoch's end, the group may be used without a Hold.
  void Enable(bool enabled) { enabled_ = enabled; }
  // Whether someone waits for a Hold: move() should return soon.
  bool wanted() const { return wanted_.load(std::memory_order_relaxed); }

 private:
  EpProgress(EpGroup* group, std::function<bool()> move, std::function<bool(int peer)> wants_room)
      : group_(*group), move_(std::move(move)), wants_room_(std::move(wants_room)) {}
  void Take();
  void Give();
  void Run();
  bool Works() const { return enabled_ && group_.status().ok(); }

  EpGroup& group_;
  const std::function<bool()> move_;
  const std::function<bool(int)> wants_room_;
  std::unique_ptr<EventFd> wake_;
  Mutex mu_;
  CondVar given_or_stopped_;
  bool enabled_ = false, napping_ = false, stop_ = false;  // with mu_
  std::atomic<bool> wanted_{false};
  std::thread thread_;  // started when it is first enabled
};

}  // namespace switchyard
