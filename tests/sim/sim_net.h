// tests/sim/sim_net.h: processes, their threads, and the network between them.
#pragma once

#include <algorithm>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "tests/sim/sim_loop.h"

namespace switchyard::sim {

// A place where a process runs. It outlives its processes; `life` counts them.
struct Node {
  explicit Node(const Loop* loop) : clock(loop) {}
  int id = 0;
  std::string name;
  uint64_t life = 0;  // 0: none runs
  uint64_t lives = 0;
  ProcessClock clock;
  absl::Time hung_until = absl::InfinitePast(), slow_until = absl::InfinitePast(),
             stuck_until = absl::InfinitePast();
};

// A thread of a process: runs what is posted to it, in order, a little later; not while its process
// hangs, and never after its own end.
class Thread {
 public:
  // `after`: called after each turn.
  Thread(Loop* loop, const Node* node, std::function<void()> after = nullptr)
      : loop_(loop), node_(node), after_(std::move(after)) {}

  void Post(std::function<void()> task) {
    tasks_.push_back(std::move(task));
    Schedule(loop_->Now() + Delay());
  }
  // Takes a turn then, whether or not there is a task.
  void WakeAt(absl::Time t) { Schedule(t); }
  // Takes no turn before `until`; then `first` comes before everything else.
  void Hold(absl::Time until, std::function<void()> first) {
    held_until_ = until;
    tasks_.push_front(std::move(first));
    Schedule(until);
  }

 private:
  absl::Duration Delay() {
    Random& random = loop_->random();
    return absl::Nanoseconds(random.Chance(0.02) ? random.Int(0, 5'000'000)
                                                 : random.Int(1'000, 200'000));
  }
  void Schedule(absl::Time t);
  void Turn();
  absl::Time free_at() const { return std::max(node_->hung_until, held_until_); }

  Loop* const loop_;
  const Node* const node_;
  const std::function<void()> after_;
  std::deque<std::function<void()>> tasks_;
  absl::Time next_ = absl::InfiniteFuture(), held_until_ = absl::InfinitePast();
  const std::shared_ptr<Thread*> self_ = std::make_shared<Thread*>(this);
};

// Who reaches whom, and how fast.
class Network {
 public:
  Network(Loop* loop, int nodes) : loop_(loop), nodes_(nodes), ways_(nodes * nodes) {}

  void Block(int from, int to, absl::Time until) { Extend(&way(from, to).blocked_until, until); }
  void Slow(int from, int to, absl::Time until) { Extend(&way(from, to).slow_until, until); }
  void Spoil(int from, int to, absl::Time until) { Extend(&way(from, to).bad_until, until); }
  bool blocked(int from, int to) { return loop_->Now() < way(from, to).blocked_until; }
  bool bad(int from, int to) { return loop_->Now() < way(from, to).bad_until; }
  // When what is sent now arrives: held back while the way is blocked, as TCP repeats it.
  absl::Time Arrival(int from, int to);

 private:
  struct Way {
    absl::Time blocked_until = absl::InfinitePast(), slow_until = absl::InfinitePast(),
               bad_until = absl::InfinitePast();
  };
  static void Extend(absl::Time* t, absl::Time until) { *t = std::max(*t, until); }
  Way& way(int from, int to) { return ways_[from * nodes_ + to]; }

  Loop* const loop_;
  const int nodes_;
  std::vector<Way> ways_;
};

// One direction of a connection: in order, nothing doubled; what is under way when it breaks is
// lost.
class Pipe {
 public:
  Pipe(Loop* loop, Network* network, int from, int to)
      : loop_(loop), network_(network), from_(from), to_(to) {}
  void Send(std::function<void()> deliver);
  void Break() { *open_ = false; }
  bool open() const { return *open_; }

 private:
  Loop* const loop_;
  Network* const network_;
  const int from_, to_;
  absl::Time last_ = absl::InfinitePast();
  const std::shared_ptr<bool> open_ = std::make_shared<bool>(true);
};

}  // namespace switchyard::sim
