// engine/expert_fetcher.h: a thread that finds the next placement and loads the experts that this
// rank lacks for it, while the engine's thread computes: one expert at a time, so many bytes a
// second at most, with less right to a core than those that compute. It also frees experts that
// nobody reads any more.
//
// One thread, the engine's, calls everything here; nothing blocks but the destructor, which waits
// for the expert that is being loaded.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <optional>
#include <thread>
#include <vector>

#include "absl/status/statusor.h"
#include "common/clock.h"
#include "common/ids.h"
#include "common/mutex.h"
#include "model/model.h"
#include "moe/rebalance_plan.h"

namespace switchyard {

class ExpertFetcher {
 public:
  struct Fetched {
    RebalancePlan plan;
    SpareExperts experts;  // all that this rank lacks for it
    uint64_t bytes = 0;    // of them, packed
    absl::Duration took;   // from Start on
  };

  // `model` and `clock` outlive the fetcher. bytes_per_second > 0.
  ExpertFetcher(const Model* model, RankId rank, double bytes_per_second, const Clock* clock);
  ~ExpertFetcher();

  // Calls plan() on the thread, and fetches what its placement has and `current` has not on this
  // rank. What was started before is dropped.
  void Start(std::shared_ptr<const Placement> current,
             std::function<absl::StatusOr<RebalancePlan>()> plan);
  // Whether Take has something to return.
  bool done() const { return done_.load(std::memory_order_acquire); }
  // What has been started last. An error: it could not be planned or loaded.
  absl::StatusOr<Fetched> Take();
  // Drops what was started.
  void Cancel();
  void Free(SpareExperts experts);

 private:
  struct Job {
    uint64_t number = 0;
    std::shared_ptr<const Placement> current;
    std::function<absl::StatusOr<RebalancePlan>()> plan;
  };
  void Run();
  absl::StatusOr<Fetched> Fetch(const Job& job) const;
  // Waits until `due`. False if the job is not wanted any more.
  bool WaitUntil(absl::Time due, const Job& job) const;

  const Model& model_;
  const RankId rank_;
  const double bytes_per_second_;
  const Clock& clock_;
  mutable Mutex mu_;
  mutable CondVar changed_;
  bool stop_ ABSL_GUARDED_BY(mu_) = false;
  uint64_t number_ ABSL_GUARDED_BY(mu_) = 0;  // of the job that is wanted
  std::optional<Job> job_ ABSL_GUARDED_BY(mu_);
  std::optional<absl::StatusOr<Fetched>> fetched_ ABSL_GUARDED_BY(mu_);
  std::vector<SpareExperts> unused_ ABSL_GUARDED_BY(mu_);
  std::atomic<bool> done_{false};
  std::thread thread_;  // last: starts when everything above exists
};

}  // namespace switchyard
