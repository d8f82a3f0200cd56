#include "moe/rebalance_plan.h"

#include <algorithm>
#include <cstring>
#include <tuple>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "moe/balancer.h"

namespace switchyard {
namespace {

size_t Slots(const Placement& p) { return static_cast<size_t>(p.slots_per_rank()) * p.ranks(); }

std::vector<int32_t> TableOf(const Placement& p) {
  std::vector<int32_t> table;
  for (int l = 0; l < p.layers(); ++l) {
    for (int r = 0; r < p.ranks(); ++r) {
      const auto hosted = p.Hosted(l, RankId(r));
      table.insert(table.end(), hosted.begin(), hosted.end());
    }
  }
  return table;
}

absl::StatusOr<Placement> FromTable(uint64_t version, const Placement& like,
                                    const std::vector<int32_t>& table) {
  return Placement::Create(version, like.experts(), like.ranks(),
                           {table.data(), {static_cast<size_t>(like.layers()), Slots(like)}});
}

// Which rank takes which of the balancer's N groups of S experts. Ranks are alike to the balancer;
// here each takes the group of which it has most, the best pairs first.
std::vector<int> RanksOfGroups(const Placement& current, int layer,
                               std::span<const int32_t> groups) {
  const size_t slots = current.slots_per_rank();
  std::vector<std::tuple<int, int, int>> pairs;  // -shared, group, rank
  for (int r = 0; r < current.ranks(); ++r) {
    std::vector<bool> has(current.experts());
    for (const int32_t e : current.Hosted(layer, RankId(r))) has[e] = true;
    for (int g = 0; g < current.ranks(); ++g) {
      const auto group = groups.subspan(g * slots, slots);
      const auto shared = std::count_if(group.begin(), group.end(), [&](int e) { return has[e]; });
      pairs.emplace_back(-static_cast<int>(shared), g, r);
    }
  }
  std::sort(pairs.begin(), pairs.end());
  std::vector<int> rank_of(current.ranks(), -1);
  std::vector<bool> taken(current.ranks());
  for (const auto& [shared, group, rank] : pairs) {
    if (rank_of[group] >= 0 || taken[rank]) continue;
    rank_of[group] = rank;
    taken[rank] = true;
  }
  return rank_of;
}

// A layer's row of a new table, and what it costs and gains.
struct NewRow {
  int layer = 0;
  std::vector<int32_t> table;  // [P]
  std::vector<int> fetched;    // [N] experts
  double gain = 0;             // of the busiest rank's load
};

// What stays on its rank stays in its slot; the rest fills the other slots in ascending order.
void FillRank(std::span<const int32_t> current, std::vector<int32_t> wanted,
              std::span<int32_t> slots, int* fetched) {
  std::sort(wanted.begin(), wanted.end());
  for (size_t s = 0; s < slots.size(); ++s) {
    const auto it = std::lower_bound(wanted.begin(), wanted.end(), current[s]);
    const bool stays = it != wanted.end() && *it == current[s];
    slots[s] = stays ? current[s] : Placement::kEmptySlot;
    if (stays) wanted.erase(it);
  }
  *fetched = static_cast<int>(wanted.size());
  auto next = wanted.begin();
  for (int32_t& slot : slots) {
    if (slot == Placement::kEmptySlot) slot = *next++;
  }
}

NewRow MakeRow(const Placement& current, int layer, std::span<const int32_t> groups) {
  const size_t slots = current.slots_per_rank();
  NewRow row{.layer = layer, .table = {}, .fetched = {}};
  row.table.resize(groups.size());
  row.fetched.resize(current.ranks());
  const std::vector<int> rank_of = RanksOfGroups(current, layer, groups);
  for (int g = 0; g < current.ranks(); ++g) {
    const int r = rank_of[g];
    const auto group = groups.subspan(g * slots, slots);
    FillRank(current.Hosted(layer, RankId(r)), {group.begin(), group.end()},
             std::span(row.table).subspan(r * slots, slots), &row.fetched[r]);
  }
  return row;
}

// Takes rows into `table`, those that gain most first, as long as every rank has room for what it
// must fetch. The balance of all that was taken goes from `before` to what is returned.
RankBalance TakeRows(std::vector<NewRow> rows, const std::vector<RankBalance>& before,
                     int fetched_max, std::vector<int32_t>* table) {
  std::stable_sort(rows.begin(), rows.end(),
                   [](const NewRow& a, const NewRow& b) { return a.gain > b.gain; });
  RankBalance after;
  for (const RankBalance& b : before) after += b;
  std::vector<int> fetched(rows.empty() ? 0 : rows[0].fetched.size());
  for (const NewRow& row : rows) {
    // Sums of shares come out a little different for each order of replicas.
    bool fits = row.gain > 1e-9 * before[row.layer].max;
    for (size_t r = 0; r < fetched.size(); ++r) {
      fits = fits && fetched[r] + row.fetched[r] <= fetched_max;
    }
    if (!fits) continue;
    for (size_t r = 0; r < fetched.size(); ++r) fetched[r] += row.fetched[r];
    std::copy(row.table.begin(), row.table.end(),
              table->begin() + static_cast<ptrdiff_t>(row.layer * row.table.size()));
    after.max -= row.gain;
  }
  return after;
}

}  // namespace

absl::StatusOr<RebalancePlan> PlanRebalance(const Placement& current, Matrix<const int64_t> loads,
                                            const RebalanceLimits& limits) {
  const auto layers = static_cast<size_t>(current.layers());
  const auto experts = static_cast<size_t>(current.experts());
  if (loads.rows() != layers || loads.cols() != experts) {
    return absl::InvalidArgumentError(absl::StrCat("rebalance: loads [", loads.rows(), ", ",
                                                   loads.cols(), "], wanted [", layers, ", ",
                                                   experts, "]"));
  }
  std::vector<double> busy;  // the loads of layers that have any, as the balancer takes them
  std::vector<int> busy_layers;
  std::vector<RankBalance> before(layers);
  RebalancePlan plan;
  for (size_t l = 0; l < layers; ++l) {
    const std::vector<double> row(loads.row(l), loads.row(l) + experts);
    before[l] = RankBalance::Of(current.RankLoads(static_cast<int>(l), row));
    plan.before += before[l];
    if (before[l].max <= 0) continue;
    busy.insert(busy.end(), row.begin(), row.end());
    busy_layers.push_back(static_cast<int>(l));
  }
  plan.after = plan.before;
  if (busy_layers.empty()) return plan;
  ASSIGN_OR_RETURN(
      const std::vector<BalancedLayer> balanced,
      BalanceExperts({busy.data(), {busy_layers.size(), experts}},
                     {.replicas = static_cast<int>(Slots(current)), .ranks = current.ranks()}));
  std::vector<int32_t> table = TableOf(current);
  std::vector<NewRow> rows;
  for (size_t i = 0; i < busy_layers.size(); ++i) {
    NewRow row = MakeRow(current, busy_layers[i], balanced[i].physical_to_logical);
    ASSIGN_OR_RETURN(const Placement alone,
                     Placement::Create(0, current.experts(), current.ranks(),
                                       {row.table.data(), {1, row.table.size()}}));
    const auto load = std::span<const double>(busy).subspan(i * experts, experts);
    row.gain = before[row.layer].max - RankBalance::Of(alone.RankLoads(0, load)).max;
    rows.push_back(std::move(row));
  }
  const int fetched_max = std::max(limits.fetched_experts_max, current.slots_per_rank());
  const std::vector<int32_t> old = table;
  plan.after = TakeRows(std::move(rows), before, fetched_max, &table);
  const double gained = plan.after.balancedness() - plan.before.balancedness();
  if (table == old || gained < limits.threshold) {
    plan.after = plan.before;
    return plan;
  }
  ASSIGN_OR_RETURN(Placement next, FromTable(current.version() + 1, current, table));
  plan.placement = std::make_shared<const Placement>(std::move(next));
  return plan;
}

std::vector<NewExpert> NewExperts(const Placement& current, const Placement& next, RankId rank) {
  std::vector<NewExpert> out;
  for (int l = 0; l < next.layers(); ++l) {
    std::vector<int32_t> had(current.Hosted(l, rank).begin(), current.Hosted(l, rank).end());
    for (const int32_t e : next.Hosted(l, rank)) {
      const auto it = std::find(had.begin(), had.end(), e);
      if (it != had.end()) {
        had.erase(it);
      } else if (e >= 0) {
        out.push_back({l, e});
      }
    }
  }
  return out;
}

uint64_t TableDigest(const Placement& placement) {
  uint64_t digest = 14695981039346656037u;  // FNV-1a
  for (const int32_t e : TableOf(placement)) {
    digest = (digest ^ static_cast<uint32_t>(e)) * 1099511628211u;
  }
  return digest | 1;
}

std::string EncodePlacement(const Placement& placement) {
  const uint64_t version = placement.version();
  const std::vector<int32_t> table = TableOf(placement);
  std::string bytes(sizeof version + table.size() * sizeof table[0], '\0');
  std::memcpy(bytes.data(), &version, sizeof version);
  std::memcpy(bytes.data() + sizeof version, table.data(), bytes.size() - sizeof version);
  return bytes;
}

absl::StatusOr<Placement> DecodePlacement(std::string_view bytes, const Placement& like) {
  uint64_t version = 0;
  std::vector<int32_t> table(like.layers() * Slots(like));
  if (bytes.size() != sizeof version + table.size() * sizeof table[0]) {
    return absl::InvalidArgumentError(
        absl::StrCat("a placement of ", bytes.size(), " bytes; wanted ", table.size(), " slots"));
  }
  std::memcpy(&version, bytes.data(), sizeof version);
  std::memcpy(table.data(), bytes.data() + sizeof version, bytes.size() - sizeof version);
  // What ranks tell each other is the placement of all of them: only Without() makes empty slots.
  if (const auto it = std::find_if(table.begin(), table.end(), [](int32_t e) { return e < 0; });
      it != table.end()) {
    return absl::InvalidArgumentError(
        absl::StrCat("a placement whose slot ", it - table.begin(), " has expert ", *it));
  }
  return FromTable(version, like, table);
}

}  // namespace switchyard
