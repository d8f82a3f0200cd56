// moe/load_statistics.h: how many tokens each expert of each layer got in the last steps, and how
// evenly a placement spreads them over ranks. No clock, no I/O; owned by one thread.
//
// Letters: L layers, E logical experts, W steps in the window.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/tensor_view.h"

namespace switchyard {

// The load of the ranks of one layer. A step waits for its busiest rank in every layer, so that
// layers add up: the sum's balancedness is that of the whole step.
struct RankBalance {
  double mean = 0, max = 0;

  static RankBalance Of(std::span<const double> rank_loads);
  RankBalance& operator+=(const RankBalance& other);
  // mean / max: 1 is perfect, 1 / ranks the worst. 1 without load.
  double balancedness() const { return max > 0 ? mean / max : 1; }
};

struct LoadStatisticsOptions {
  int layers = 0;
  int experts = 0;
  int window_steps = 0;  // W
};

class LoadStatistics {
 public:
  // Errors: kInvalidArgument if a size is below 1 or W · L · E exceeds 2^26 (256 MiB of counts).
  static absl::StatusOr<LoadStatistics> Create(const LoadStatisticsOptions& options);

  // counts [L, E]: tokens of one step. The step W before it leaves the window.
  // Errors: kInvalidArgument for another shape or a negative count; nothing is added then.
  absl::Status AddStep(Matrix<const int32_t> counts);

  int steps() const { return steps_; }  // in the window, at most W
  // Sums over the window [L, E]; all 0 before the first step. Valid until the next AddStep.
  Matrix<const int64_t> totals() const;
  // The same as the balancer takes them, [L · E].
  std::vector<double> Loads() const { return {totals_.begin(), totals_.end()}; }

 private:
  explicit LoadStatistics(const LoadStatisticsOptions& options);

  LoadStatisticsOptions options_;
  std::vector<int32_t> window_;  // [W, L, E], a ring
  std::vector<int64_t> totals_;  // [L, E]
  int steps_ = 0, next_ = 0;     // next_: the ring's row to overwrite
};

}  // namespace switchyard
