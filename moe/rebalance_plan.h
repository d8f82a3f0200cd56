// moe/rebalance_plan.h: the placement that measured loads call for, beside the one that is in use:
// the balancer's replicas, on the ranks and in the slots where they move least. Pure functions of
// what all ranks know, so that all ranks find the same.
//
// Letters: L layers, E logical experts, N ranks, S slots per rank, P = N · S.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "common/tensor_view.h"
#include "moe/load_statistics.h"
#include "moe/placement.h"

namespace switchyard {

struct RebalanceLimits {
  // What the balancedness of a whole step must gain, or everything stays where it is. With 0 any
  // gain will do.
  double threshold = 0.05;
  // Experts of all layers together that a rank may fetch for one new placement: it holds them
  // beside its own until all switch. The layers that gain most go first. At least S.
  int fetched_experts_max = 64;
};

struct RebalancePlan {
  std::shared_ptr<const Placement> placement;  // version: one more; null: all stays
  RankBalance before, after;  // of the loads, summed over layers, as the plan finds them
};

// `current` has no empty slot; loads [L, E]: tokens. Layers without load stay as they are. Errors:
// kInvalidArgument for loads and for shapes that the balancer refuses.
absl::StatusOr<RebalancePlan> PlanRebalance(const Placement& current, Matrix<const int64_t> loads,
                                            const RebalanceLimits& limits);

// The experts that `rank` hosts in `next` and has not in `current`.
struct NewExpert {
  int layer = 0;
  int32_t expert = 0;
};
std::vector<NewExpert> NewExperts(const Placement& current, const Placement& next, RankId rank);

// Equal for equal tables, whatever their version. Never 0.
uint64_t TableDigest(const Placement& placement);

// Version and table, for other ranks; of one size for placements of one shape.
std::string EncodePlacement(const Placement& placement);
// kInvalidArgument unless it is a placement of the shape of `like`, without empty slots.
absl::StatusOr<Placement> DecodePlacement(std::string_view bytes, const Placement& like);

}  // namespace switchyard
