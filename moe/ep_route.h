// moe/ep_route.h: where the rows of one dispatch lie when each pair of ranks moves them as one
// block, from device to device (docs/cuda.md). Both ends derive their half from the same plans
// (ep_plan.h): no size and no order is ever told. Pure: no I/O.
//
// Letters: N ranks, T tokens of this rank, K top-k slots, P tokens that come here, R rows that they
// are for this rank's experts.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "moe/ep_plan.h"

namespace switchyard {

// Blocks of rows, one for each rank: rank r's is [first[r], first[r + 1]). [N + 1]
using BlockFirsts = std::vector<int32_t>;

struct EpRoute {
  // Dispatch: tokens to each rank and from each.
  BlockFirsts out_first, in_first;
  std::vector<int32_t> out;  // which of this rank's tokens row i of the blocks is
  // Experts take [P] tokens by Grouping::index.
  // Combine: outputs back to each rank, and this rank's own from each.
  BlockFirsts back_first, home_first;
  std::vector<int32_t> back;   // [R] which row of the experts' outputs row i of the blocks is
  std::vector<int32_t> where;  // [T, K] the row of the blocks that came that a slot's output is
};

// out, in [N]: plans to and from each rank; rank_of [T, K]: of MakePlans; grouping: of `in`.
void MakeRoute(std::span<const RankPlan> out, std::span<const RankPlan> in,
               std::span<const int32_t> rank_of, const Grouping& grouping, EpRoute* route);

}  // namespace switchyard
