#include "moe/ep_route.h"

namespace switchyard {

void MakeRoute(std::span<const RankPlan> out, std::span<const RankPlan> in,
               std::span<const int32_t> rank_of, const Grouping& grouping, EpRoute* route) {
  const size_t ranks = out.size();
  for (BlockFirsts* first :
       {&route->out_first, &route->in_first, &route->back_first, &route->home_first}) {
    first->assign(ranks + 1, 0);
  }
  route->out.clear();
  route->back.clear();
  for (size_t r = 0; r < ranks; ++r) {
    const auto end = [r](BlockFirsts& first, size_t rows) {
      first[r + 1] = first[r] + static_cast<int32_t>(rows);
    };
    end(route->out_first, out[r].counts.size());
    end(route->in_first, in[r].counts.size());
    end(route->back_first, in[r].slots.size());
    end(route->home_first, out[r].slots.size());
    route->out.insert(route->out.end(), out[r].tokens.begin(), out[r].tokens.end());
    route->back.insert(route->back.end(), grouping.rows[r].begin(), grouping.rows[r].end());
  }
  // A rank's outputs return in the order of its plan's entries: by token, then by slot.
  std::vector<int32_t> next(route->home_first.begin(), route->home_first.end() - 1);
  route->where.resize(rank_of.size());
  for (size_t i = 0; i < rank_of.size(); ++i) route->where[i] = next[rank_of[i]]++;
}

}  // namespace switchyard
