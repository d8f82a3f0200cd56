// moe/balancer.h: which physical replicas each logical expert gets and which rank hosts them, from
// measured loads. A pure function. Source: EPLB, the expert-placement load balancer that DeepSeek
// published with DeepSeek-V3 (https://github.com/deepseek-ai/EPLB).
//
// Hierarchical: groups of experts go to nodes, so that group-limited gating stays within a node;
// then each node replicates its heavy experts and packs the replicas onto its ranks. With one
// group and one node that is the global policy. The published form may put two replicas of one
// expert on one rank, where the second is wasted; the default here forbids it.
//
// Letters: L layers, E logical experts, R redundant replicas, P = E + R physical experts.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "common/tensor_view.h"

namespace switchyard {

inline constexpr int kBalancedLayersMax = 1024;
inline constexpr int kBalancedExpertsMax = 1 << 16;
inline constexpr int kBalancedReplicasMax = 1 << 17;
inline constexpr int kBalancedRanksMax = 1024;
inline constexpr int kBalancedSlotsMax = 1 << 22;  // L · P: 16 MiB of physical_to_logical
inline constexpr double kExpertLoadMax = 1e30;     // sums of 65,536 of these still fit FP32

struct BalanceOptions {
  int replicas = 0;  // P, divisible by ranks
  int ranks = 0;     // divisible by nodes
  int groups = 1;    // divides E, divisible by nodes
  int nodes = 1;
  // The published form, bit by bit. Else no two replicas of one expert share a rank, so that an
  // expert has at most ranks / nodes of them.
  bool allow_duplicates = false;
};

// One layer. Rank r hosts the physical experts [r · P / ranks, (r + 1) · P / ranks).
struct BalancedLayer {
  std::vector<int32_t> physical_to_logical;  // [P]
  std::vector<std::vector<int32_t>>
      logical_to_physical;  // [E][replicas of e], in order of creation
};

// loads [L, E]: tokens, or anything in proportion, in 0 … kExpertLoadMax. Ties go to the lower
// index; arithmetic is FP32, as in the published form. Result [L]; empty without layers.
// Errors: kInvalidArgument for loads, sizes and divisibility, with the numbers.
absl::StatusOr<std::vector<BalancedLayer>> BalanceExperts(Matrix<const double> loads,
                                                          const BalanceOptions& options);

}  // namespace switchyard
