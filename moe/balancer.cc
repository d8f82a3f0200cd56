#include "moe/balancer.h"

#include <algorithm>
#include <numeric>
#include <queue>
#include <set>
#include <span>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/status_macros.h"

namespace switchyard {
namespace {

// Fills packs of equal size: the heaviest item first, each into the lightest pack with room.
// `kinds` [n] may be empty; otherwise no pack gets two items of one kind, which is possible if a
// kind has at most as many items as there are packs.
class Packer {
 public:
  Packer(std::span<const float> weights, int packs, std::span<const int> kinds)
      : weights_(weights),
        kinds_(kinds),
        room_(static_cast<int>(weights.size()) / packs),
        items_(packs),
        load_(packs) {
    for (int p = 0; p < packs; ++p) open_.insert({0.0f, p});
    if (!kinds.empty()) {
      const size_t count = *std::max_element(kinds.begin(), kinds.end()) + 1;
      held_.resize(count * packs);
    }
  }

  // Returns the item in each place [n]: pack p has the places [p · n / packs, (p + 1) · n / packs).
  std::vector<int> Pack() {
    std::vector<int> order(weights_.size());
    std::iota(order.begin(), order.end(), 0);
    if (room_ == 1) return order;  // nothing to balance: the published form leaves them in place
    std::stable_sort(order.begin(), order.end(),
                     [this](int a, int b) { return weights_[a] > weights_[b]; });
    for (const int item : order) {
      const auto pack = std::find_if(open_.begin(), open_.end(),
                                     [&](const auto& o) { return !Holds(o.second, item); });
      if (pack != open_.end()) {
        Put(item, pack->second);
      } else {
        Exchange(item);
      }
    }
    std::vector<int> item_at;
    for (const auto& items : items_) item_at.insert(item_at.end(), items.begin(), items.end());
    return item_at;
  }

 private:
  bool Holds(int pack, int item) const {  // one of the item's kind
    return !kinds_.empty() && held_[HeldIndex(pack, item)];
  }
  size_t HeldIndex(int pack, int item) const {
    return static_cast<size_t>(kinds_[item]) * items_.size() + pack;
  }

  void Put(int item, int pack) {
    open_.erase({load_[pack], pack});
    load_[pack] += weights_[item];
    items_[pack].push_back(item);
    if (static_cast<int>(items_[pack].size()) < room_) open_.insert({load_[pack], pack});
    if (!kinds_.empty()) held_[HeldIndex(pack, item)] = true;
  }

  // Every pack with room holds the item's kind: it takes a place in a full pack that does not, and
  // what was there moves to the lightest pack with room. The full pack has more kinds than the one
  // with room, and not the item's, so that something in it can move.
  void Exchange(int item) {
    const int to = open_.begin()->second;
    int full = -1;
    for (int p = 0; p < static_cast<int>(load_.size()); ++p) {
      if (!Holds(p, item) && (full < 0 || load_[p] < load_[full])) full = p;
    }
    SY_CHECK(full >= 0);
    std::vector<int>& items = items_[full];  // heaviest first, but for earlier exchanges
    const auto place =
        std::find_if(items.rbegin(), items.rend(), [&](int other) { return !Holds(to, other); });
    SY_CHECK(place != items.rend());
    const int moved = std::exchange(*place, item);
    load_[full] += weights_[item] - weights_[moved];
    held_[HeldIndex(full, item)] = true;
    held_[HeldIndex(full, moved)] = false;
    Put(moved, to);
  }

  const std::span<const float> weights_;  // [n]
  const std::span<const int> kinds_;      // [n] or empty
  const int room_;                        // n / packs
  std::vector<std::vector<int>> items_;   // [packs][≤ room]
  std::vector<float> load_;               // [packs]
  std::set<std::pair<float, int>> open_;  // (load, pack) of the packs with room
  std::vector<bool> held_;                // [kinds, packs]: the pack holds one; empty without kinds
};

struct Replication {
  std::vector<int> expert;  // [P]: of each replica; the first E are the experts themselves
  std::vector<int> count;   // [E]
};

// Gives each expert one replica, and then the next one to whichever expert has the most load per
// replica, until there are `replicas`.
Replication Replicate(std::span<const float> loads, int replicas, int count_max) {
  const int experts = static_cast<int>(loads.size());
  Replication r{std::vector<int>(experts), std::vector<int>(experts, 1)};
  std::iota(r.expert.begin(), r.expert.end(), 0);
  std::priority_queue<std::pair<float, int>> heaviest;  // (load per replica, -expert)
  for (int e = 0; count_max > 1 && e < experts; ++e) heaviest.push({loads[e], -e});
  while (static_cast<int>(r.expert.size()) < replicas) {
    SY_CHECK(!heaviest.empty());
    const int e = -heaviest.top().second;
    heaviest.pop();
    r.expert.push_back(e);
    ++r.count[e];
    if (r.count[e] < count_max) {
      heaviest.push({loads[e] / static_cast<float>(r.count[e]), -e});
    }
  }
  return r;
}

// loads [E]; logical [E / nodes]: the node's experts. Appends its physical experts to `layer`.
void BalanceNode(std::span<const float> loads, std::span<const int> logical,
                 const BalanceOptions& options, BalancedLayer& layer) {
  const int replicas = options.replicas / options.nodes, ranks = options.ranks / options.nodes;
  std::vector<float> node_loads;  // [E / nodes]
  for (const int e : logical) node_loads.push_back(loads[e]);
  const Replication r =
      Replicate(node_loads, replicas, options.allow_duplicates ? replicas : ranks);

  std::vector<float> shares;  // [P / nodes]: load of each replica
  for (const int e : r.expert) shares.push_back(node_loads[e] / static_cast<float>(r.count[e]));
  const std::vector<int> replica_at =  // [P / nodes]
      Packer(shares, ranks, options.allow_duplicates ? std::span<const int>() : r.expert).Pack();

  const int first = static_cast<int>(layer.physical_to_logical.size());
  std::vector<int> physical(replicas);
  for (int i = 0; i < replicas; ++i) {
    physical[replica_at[i]] = first + i;
    layer.physical_to_logical.push_back(logical[r.expert[replica_at[i]]]);
  }
  for (int i = 0; i < replicas; ++i) {
    layer.logical_to_physical[logical[r.expert[i]]].push_back(physical[i]);
  }
}

BalancedLayer BalanceLayer(std::span<const float> loads, const BalanceOptions& options) {
  const int experts = static_cast<int>(loads.size());
  const int group_size = experts / options.groups, node_size = experts / options.nodes;
  std::vector<float> group_loads(options.groups);
  for (int e = 0; e < experts; ++e) group_loads[e / group_size] += loads[e];
  std::vector<int> logical;  // [E], node by node
  for (const int group : Packer(group_loads, options.nodes, {}).Pack()) {
    for (int i = 0; i < group_size; ++i) logical.push_back(group * group_size + i);
  }
  BalancedLayer layer;
  layer.logical_to_physical.resize(experts);
  for (int n = 0; n < options.nodes; ++n) {
    BalanceNode(loads, std::span(logical).subspan(n * node_size, node_size), options, layer);
  }
  return layer;
}

absl::Status CheckRange(const char* what, int64_t value, int64_t low, int64_t high) {
  if (value >= low && value <= high) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(what, " is ", value, "; ", low, " to ", high, " is wanted"));
}

absl::Status CheckDivides(const char* whole, int a, const char* parts, int b) {
  if (a % b == 0) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(a, " ", whole, " cannot be split evenly over ", b, " ", parts));
}

absl::Status CheckSizes(size_t layers, size_t columns, const BalanceOptions& o) {
  RETURN_IF_ERROR(CheckRange("layers", layers, 0, kBalancedLayersMax));
  RETURN_IF_ERROR(CheckRange("experts", columns, 1, kBalancedExpertsMax));
  const int experts = static_cast<int>(columns);
  RETURN_IF_ERROR(CheckRange("replicas", o.replicas, experts, kBalancedReplicasMax));
  RETURN_IF_ERROR(CheckRange("layers · replicas", static_cast<int64_t>(layers) * o.replicas, 0,
                             kBalancedSlotsMax));
  RETURN_IF_ERROR(CheckRange("ranks", o.ranks, 1, kBalancedRanksMax));
  RETURN_IF_ERROR(CheckRange("groups", o.groups, 1, experts));
  RETURN_IF_ERROR(CheckRange("nodes", o.nodes, 1, o.ranks));
  if (o.replicas % o.ranks != 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        experts, " experts + ", o.replicas - experts, " redundant replicas = ", o.replicas,
        " cannot be split evenly over ", o.ranks, " ranks"));
  }
  RETURN_IF_ERROR(CheckDivides("experts", experts, "groups", o.groups));
  RETURN_IF_ERROR(CheckDivides("groups", o.groups, "nodes", o.nodes));
  RETURN_IF_ERROR(CheckDivides("ranks", o.ranks, "nodes", o.nodes));
  if (!o.allow_duplicates && o.replicas / o.ranks > experts / o.nodes) {
    return absl::InvalidArgumentError(absl::StrCat(
        "a rank has ", o.replicas / o.ranks, " slots, and its node only ", experts / o.nodes,
        " experts: without duplicates on a rank some slots would stay empty"));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::vector<BalancedLayer>> BalanceExperts(Matrix<const double> loads,
                                                          const BalanceOptions& options) {
  if (loads.rows() == 0) return std::vector<BalancedLayer>();
  RETURN_IF_ERROR(CheckSizes(loads.rows(), loads.cols(), options));
  std::vector<BalancedLayer> layers;
  std::vector<float> row(loads.cols());
  for (size_t l = 0; l < loads.rows(); ++l) {
    for (size_t e = 0; e < loads.cols(); ++e) {
      if (!(loads(l, e) >= 0 && loads(l, e) <= kExpertLoadMax)) {
        return absl::InvalidArgumentError(absl::StrCat("the load of row ", l, ", column ", e,
                                                       " is ", loads(l, e), "; 0 to ",
                                                       kExpertLoadMax, " is wanted"));
      }
      row[e] = static_cast<float>(loads(l, e));
    }
    layers.push_back(BalanceLayer(row, options));
  }
  return layers;
}

}  // namespace switchyard
