// moe/ep_group.h: the ranks that share a model's experts, for one epoch: who they are, the links
// between them, and waiting. When a rank is lost the epoch is over: everything here then answers
// kUnavailable, and a new group is made from new hellos.
//
//   Create ─► HelloFor(each peer) … exchange … ─► Connect(theirs) ─► OpenStep, OpenStep, …
//
// Steps are collective. A rank that has work opens the next step; the others see it (StepOpened)
// and open it too, with 0 rows if they have none. Without work anywhere all sleep.
//
// After Create owned by one thread, the engine's. Letters: N ranks.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/clock.h"
#include "common/compute_pool.h"
#include "common/net/lanes.h"
#include "moe/ep_link.h"
#include "moe/ep_wire.h"

namespace switchyard {

struct EpGroupOptions {
  int rank = 0, world = 1;   // N, at most kEpRanksMax
  uint64_t incarnation = 0;  // of this process
  uint64_t last_epoch = 0;   // that this rank was in; 0: none
  // What must be equal on all ranks, as words: model, numbers, sizes. Connect refuses others.
  std::string config = "";
  std::vector<std::string> lanes = {"shm", "tcp"};  // allowed ones, best first, for each pair
  std::string net_devices = "lo";                   // of the tcp lane
  size_t ring_bytes = 8 << 20;                      // of each ring; there are N - 1 on each rank
  // How long a rank looks for a frame before it sleeps. 0 where ranks are more than cores.
  absl::Duration spin = absl::Microseconds(50);
  // A peer that has not sent what all wait for after so long is lost. Longer than any rank computes
  // between two frames.
  absl::Duration wait_max = absl::Seconds(30);
  // Whether the process `incarnation` that is rank `rank` lives; may block for a moment. Asked
  // about every peer once a wait has taken longer than alive_after, and again after as long. A
  // process that is stopped keeps its connections: nothing else tells it from one that computes.
  std::function<bool(int rank, uint64_t incarnation)> alive = nullptr;
  absl::Duration alive_after = absl::Milliseconds(500);
  // Called at each turn of a wait, every 250 ms at least: who waits is not stuck. May be empty.
  std::function<void()> on_wait = nullptr;
};

class EpGroup {
 public:
  // Makes the rings. `clock` must outlive the group. kInvalidArgument names an option;
  // kUnavailable: no such lane here; kResourceExhausted: no memory for the rings.
  static absl::StatusOr<std::unique_ptr<EpGroup>> Create(const EpGroupOptions& options,
                                                         const Clock* clock);
  ~EpGroup();
  EpGroup(const EpGroup&) = delete;
  EpGroup& operator=(const EpGroup&) = delete;

  EpHello HelloFor(int peer) const;
  // hellos [N]: from each rank to this one; none from ranks that are absent in this epoch, and this
  // rank's own is not looked at. Ends with the first
  // all-gather, so that all ranks have connected when it returns. Errors: of CheckEpHello;
  // kUnavailable names a rank that is lost or does not answer.
  absl::Status Connect(std::span<const std::optional<EpHello>> hellos);

  int rank() const { return options_.rank; }
  int world() const { return options_.world; }
  uint64_t epoch() const { return epoch_; }
  bool present(int rank) const { return rank == options_.rank || links_[rank] != nullptr; }
  int present_ranks() const;
  // The process that is rank `rank` in this epoch; 0 if the rank is absent.
  uint64_t incarnation(int rank) const { return incarnations_[rank]; }
  const EpGroupOptions& options() const { return options_; }
  std::string DescribeLanes() const;  // "1:shm(tcp/lo.0) 2:…", for logs

  // True if a peer has opened the step that this rank has not; true too if the epoch is over, so
  // that OpenStep tells. Never blocks.
  bool StepOpened();
  // Sends this rank's header (epoch and step are filled in) and waits for all others'. [N], valid
  // until the next call; an absent rank's is all zero.
  absl::StatusOr<std::span<const StepHeader>> OpenStep(StepHeader mine);
  // Right after OpenStep, on all ranks: sends `mine` to all and waits for all others' [N]; an
  // absent rank's is empty. All are of one size, from 1 to gather_bytes_max().
  absl::StatusOr<std::vector<std::string>> Gather(const std::string& mine);
  // Returns when all ranks have called it. As long as they live they may take up to `wait_max` to
  // do so, instead of the options'.
  absl::Status Barrier(absl::Duration wait_max);
  size_t gather_bytes_max() const { return options_.ring_bytes / 4 - sizeof(EpFrameHeader); }
  // Sleeps until a peer opens a step, the epoch is over, `wake_fd` is readable or `timeout` is
  // over.
  void Sleep(int wake_fd, absl::Duration timeout);

  // ---- for the dispatcher
  // The link to rank `peer`; null for this rank, and for absent ones.
  EpLink* link(int peer) { return links_[peer].get(); }
  // Calls done() until it is true; it moves what it can. Spins a little, then sleeps until
  // something comes. wants_room(peer): whether frames wait for room in that peer's ring.
  // kUnavailable if a rank is lost or wait_max is over; missing() then says what has not come, from
  // which rank.
  absl::Status Wait(FunctionRef<bool()> done, FunctionRef<bool(int peer)> wants_room,
                    FunctionRef<std::string()> missing);
  // The same for what no frame tells of, such as the end of a device's work: it looks again after
  // naps of 50 µs. A peer that is lost meanwhile ends it too.
  absl::Status Poll(FunctionRef<bool()> done, FunctionRef<std::string()> missing,
                    absl::Duration wait_max);
  // A sleep in two parts, for who polls event_fd() itself: true if nothing is to be done until it
  // is readable. Awake() follows, whatever the answer.
  bool FallAsleep(FunctionRef<bool()> done, FunctionRef<bool(int peer)> wants_room);
  void Awake();
  int event_fd() const { return workers_.tcp->event_fd(); }
  const Clock& clock() const { return clock_; }
  // OK while the epoch lasts.
  const absl::Status& status() const { return status_; }
  void Fail(absl::Status why);  // ends the epoch

 private:
  EpGroup(const EpGroupOptions& options, const Clock* clock) : options_(options), clock_(*clock) {}
  void SetHandlers();
  EpLink* LinkOf(uint64_t token);
  // Runs UCX's callbacks. True if anything happened.
  bool Progress();
  bool CheckLinks();  // false if the epoch is over
  // Sends `mine` to all and hands each peer's payload to take(), which says whether it can be.
  absl::Status AllGather(EpFrameKind kind, std::span<const std::byte> mine,
                         FunctionRef<bool(int peer, std::span<const std::byte> payload)> take,
                         absl::Duration wait_max);
  // idle(longest): sleeps until it is time to look again.
  absl::Status LookUntil(FunctionRef<bool()> done, FunctionRef<void(absl::Duration longest)> idle,
                         FunctionRef<std::string()> missing, absl::Duration wait_max);
  absl::Status WaitFor(FunctionRef<bool()> done, FunctionRef<bool(int peer)> wants_room,
                       FunctionRef<std::string()> missing, absl::Duration wait_max);
  void AskWhoLives();
  void SleepOnce(FunctionRef<bool()> done, FunctionRef<bool(int)> wants_room, int wake_fd,
                 absl::Duration timeout);

  const EpGroupOptions options_;
  const Clock& clock_;
  TransportWorkers workers_;
  std::vector<std::unique_ptr<EpLink>> links_;  // [N]
  std::vector<uint64_t> incarnations_;          // [N]
  bool all_shm_ = true;
  uint64_t epoch_ = 0, step_ = 0;
  std::vector<StepHeader> headers_;
  absl::Status status_;
};

}  // namespace switchyard
