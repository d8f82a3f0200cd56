// moe/ep_plan.h: who computes what in one dispatch: which tokens go to which rank, for which of its
// experts, and where their rows lie there. Pure: no I/O.
//
// Letters: T tokens of this rank, K top-k slots, N ranks, S expert slots per rank
// (moe/placement.h). A plan lists the P tokens of one source rank for one destination, ascending,
// each once however many experts it is for; its M entries are those (token, expert) pairs, by
// token, then by top-k slot. Outputs return in the order of the entries: nothing needs to be said
// about them on the way back.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "common/tensor_view.h"
#include "moe/placement.h"

namespace switchyard {

struct RankPlan {
  std::vector<int32_t> tokens;  // [P]: rows of the source's batch; known to the source only
  std::vector<uint8_t> counts;  // [P]: entries of each token, at least 1
  std::vector<uint16_t> slots;  // [M]: of the destination rank
  std::vector<float> weights;   // [M] of the outputs, where they return reduced; else none
  void Clear();
};
inline constexpr int kPlanTopKMax = 255;       // of counts
inline constexpr int kPlanSlotsMax = 1 << 16;  // S

// plans [N]; rank_of [T, K]: where slot k of token t is computed. Replicas by position
// (Placement::Choose). Ids must be in range. weights: [T, K], or none for plans without.
void MakePlans(const Placement& placement, int layer, Matrix<const int32_t> experts,
               std::span<const int32_t> positions, std::span<RankPlan> plans,
               std::vector<int32_t>* rank_of, Matrix<const float> weights = {});

// The rows that come back reduced: of each token one from each rank, in the order of the ranks.
struct ReturningRow {
  int32_t token, rank;
};
void OrderReduced(std::span<const int32_t> rank_of, int top_k, std::vector<ReturningRow>* rows);

// What both ends of a plan know.
struct PlanTerms {
  int top_k = 0, slots_per_rank = 0;
  bool weighted = false;
};
// On the wire: counts u8 [P], padding to 2 bytes, slots u16 [M], if weighted weights f32 [M].
constexpr size_t PlanBytes(size_t tokens, size_t entries, bool weighted = false) {
  return (tokens + 1) / 2 * 2 + (weighted ? 6 : 2) * entries;
}
void WritePlan(const RankPlan& plan, std::byte* to);
// kInvalidArgument unless `bytes` is exactly a plan of those sizes whose tokens have 1 to `top_k`
// entries each and whose slots are below `slots_per_rank`. `tokens` stays empty.
absl::Status ReadPlan(std::span<const std::byte> bytes, size_t tokens, size_t entries,
                      const PlanTerms& terms, RankPlan* plan);

// Where the entries of all sources become rows, grouped by expert slot; within a slot by source
// rank, then in the order of the entries.
struct Grouping {
  std::vector<int32_t> offsets;            // [S + 1]
  std::vector<std::vector<int32_t>> rows;  // [N][M of that source]
  // [R]: of which token row r is, where tokens are numbered by source rank, then as in its plan.
  std::vector<int32_t> index;
  size_t tokens = 0;  // so numbered
};
// plans [N]: from each source to this rank. kInvalidArgument if there are more than 2^31 - 1 rows.
absl::Status GroupByExpert(std::span<const RankPlan> plans, int slots_per_rank, Grouping* grouping);

}  // namespace switchyard
