// engine/ep_rank.h: this process as one rank of an expert-parallel group: finds its peers, gives
// the engine its steps and the model its dispatcher. Attention is data-parallel: each rank is a
// worker of its own to the router, with its own requests and KV; only expert rows travel.
//
// When a rank is lost the epoch ends. Those that are left meet again (cluster/rendezvous.h), host
// the experts that only it had (Placement::Without) and run the step again; what the lost rank had
// to do the router sends to others. A rank that comes back knocks, and all meet at the next step.
//
// While all ranks are there, measured loads may call for another placement (moe/rebalancer.h): its
// experts are fetched beside the steps (engine/expert_fetcher.h), and all ranks switch before the
// same step.
#pragma once

#include <atomic>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "cluster/rendezvous.h"
#include "common/clock.h"
#include "common/mutex.h"
#include "common/telemetry/log.h"
#include "engine/engine.h"
#include "engine/expert_fetcher.h"
#include "engine/step_group.h"
#include "model/model.h"
#include "moe/ep_dispatcher.h"
#include "moe/ep_group.h"
#include "moe/load_statistics.h"
#include "moe/rebalance_plan.h"
#include "moe/rebalancer.h"

namespace switchyard {

struct EpOptions {
  int rank = 0;
  std::vector<std::string> peers;  // [N] gRPC addresses of all ranks' workers; empty: no group
  std::vector<std::string> lanes = {"shm", "tcp"};
  std::string net_devices = "lo";
  int redundant_experts = 0;   // R: replicas beyond one of each expert, per layer
  std::string placement_file;  // what `switchyard balance` printed; empty: an even placement
  absl::Duration wait_max = absl::Seconds(30);               // EpGroupOptions
  absl::Duration alive_after = absl::Milliseconds(500);      // the same
  int low_latency_tokens = 128;                              // EpDispatcher::Options
  absl::Duration grace = absl::Milliseconds(500);            // RendezvousOptions
  TlsOptions tls = {};                                       // the same
  absl::Duration rebalance_interval = absl::ZeroDuration();  // at least; 0: never
  RebalanceLimits rebalance = {};
  double rebalance_bytes_per_second = 20e6;    // of the experts that a rank fetches
  EpOverlap overlap = EpOverlap::kAuto;        // EpDispatcher::Options
  int tensor_ranks = 1;                        // neighbours that compute attention together
  DeviceLane device_lane = DeviceLane::kAuto;  // EpDispatcher::Options
  int device_ctas = 0;                         // the same

  int world() const { return static_cast<int>(peers.size()); }
  bool alone() const { return peers.empty(); }
  int tensor_rank() const { return rank % tensor_ranks; }
};

// What live rebalancing did, on this rank.
struct EpRebalanceStats {
  uint64_t placement = 0;                    // version in use; the first is 1
  uint64_t done = 0, kept = 0, aborted = 0;  // rounds: switched; nothing to gain; dropped
  uint64_t fetched_experts = 0, fetched_bytes = 0;
  double fetch_seconds = 0;
  double before = 1, after = 1;  // balancedness that the last plan found and promised
};

// A moment of a rank of a group. Loads are of its own tokens, in the last steps that it computed.
struct EpSnapshot {
  uint64_t epoch = 0;  // 0: no group
  int ranks = 0;       // that are in the epoch
  uint64_t bytes_sent = 0, overlapped_steps = 0;
  EpWaits waited;  // within steps
  EpRebalanceStats rebalance = {};
  std::vector<int> moe_layers = {};                     // the layer of each row below
  std::vector<std::vector<int64_t>> expert_loads = {};  // [MoE layers][E] tokens
  std::vector<std::vector<double>> rank_loads = {};     // [MoE layers][N] the same by where they go
};

// The experts of every rank, with a row per layer of the model. kInvalidArgument with the numbers:
// E + R that N does not divide, a file that does not fit the model.
absl::StatusOr<Placement> MakePlacement(const ModelConfig& config, const EpOptions& options);

class EpRank final : public StepGroup {
 public:
  // `model` was loaded with `placement` and outlives the rank, as do clock and log (may be null).
  static absl::StatusOr<std::unique_ptr<EpRank>> Create(const EpOptions& options, Model* model,
                                                        std::shared_ptr<const Placement> placement,
                                                        const Clock* clock, Logger* log);

  // The engine that steps with this rank: mates of a tensor group must have the same. Before
  // service() is served.
  void UseEngine(const EngineOptions& options);
  // To be served beside the worker's own services.
  grpc::Service* service() { return &rendezvous_; }
  // Ends a Form that waits. Thread-safe.
  void Stop() { rendezvous_.Stop(); }

  absl::Status Form() override;
  bool StepWanted() override;
  absl::StatusOr<bool> Open(int rows, size_t batch_words) override;
  int tensor_rank() const override { return options_.tensor_rank(); }
  int tensor_ranks() const override { return options_.tensor_ranks; }
  uint64_t tensor_epoch() const override { return tensor_epoch_.load(std::memory_order_relaxed); }
  absl::Status ShareBatch(std::vector<int32_t>* words, size_t words_max) override;
  uint64_t waits() const override { return waits_.load(std::memory_order_relaxed); }
  void Sleep(int wake_fd, absl::Duration timeout) override;

  // This rank has nothing more to do of its own; it goes on serving the others until all say so.
  void Leave() { leaving_ = true; }
  // At most a second old. Thread-safe.
  EpSnapshot Snapshot() const {
    MutexLock lock(mu_);
    return snapshot_;
  }
  // All ranks have said so: there are no more steps. Thread-safe.
  bool left() const { return left_.load(std::memory_order_relaxed); }

 private:
  EpRank(const EpOptions& options, Model* model, std::shared_ptr<const Placement> placement,
         const Clock* clock, Logger* log, LoadStatistics loads);
  EpHello MakeTerms() const;
  absl::Status CheckTerms(int peer, const std::string& hello) const;
  absl::Status FormOnce(absl::Duration timeout);
  // Agrees with all ranks of `group`, which are those, on a placement; makes the model host it.
  absl::Status Place(EpGroup& group, const std::vector<bool>& present);
  // Rebalancing: what the headers of a step that begins call for.
  absl::Status Rebalance(std::span<const StepHeader> headers);
  absl::Status GatherLoads();
  absl::Status Switch();
  void TakeFetched();
  void CountSwitch();
  void EndRound(SpareExperts unused);
  // Takes in the loads of the step that has ended, and shows them from time to time.
  void CountStep();
  // Says how rows travel between devices, once that is known of an epoch.
  void TellLane();
  // Of this epoch.
  void AddCounters(EpSnapshot* to) const;
  void Show();
  // Takes note of who is there of the ranks that compute attention with this one.
  void CountMates();
  int leader() const { return options_.rank - options_.tensor_rank(); }
  // A rank that is not in this epoch has knocked since it began.
  bool Knocked() const;

  const EpOptions options_;
  Model& model_;
  std::shared_ptr<const Placement> whole_;      // when all ranks are there
  std::shared_ptr<const Placement> placement_;  // in this step
  const uint64_t first_digest_;                 // of what the rank began with
  const EpDispatcher::Options dispatch_;
  EpHello terms_;  // what others must agree to; constant once service() is served
  const Clock& clock_;
  Logger* const log_;
  const uint64_t incarnation_;
  std::atomic<uint64_t> waits_{0};
  Rendezvous rendezvous_;
  std::unique_ptr<EpGroup> group_;
  std::unique_ptr<EpDispatcher> dispatcher_;
  uint64_t epoch_ = 0;                   // the last one
  std::vector<uint64_t> knocks_;         // [N] counts when it began
  bool leaving_ = false, told_ = false;  // told_: a step has carried it
  bool lane_told_ = false;               // of this epoch
  std::atomic<bool> left_{false};
  LoadStatistics loads_;
  Rebalancer rebalancer_;
  std::optional<ExpertFetcher::Fetched> pending_;  // this rank is ready for it
  EpRebalanceStats rebalance_;
  bool computes_ = false;  // the step that is open
  std::atomic<uint64_t> tensor_epoch_{0};
  uint64_t tensor_epochs_ = 0;   // so far
  std::vector<uint64_t> mates_;  // incarnations in the last of them
  size_t batch_words_ = 0;       // of the step that is open
  EpSnapshot past_;              // the counters of epochs that have ended
  absl::Time shown_ = absl::InfinitePast();
  mutable Mutex mu_;
  EpSnapshot snapshot_ ABSL_GUARDED_BY(mu_);
  ExpertFetcher fetcher_;  // last: its thread ends first
};

}  // namespace switchyard
