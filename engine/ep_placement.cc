// The placement that a group begins with: even, or from a file.
#include <algorithm>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "common/file.h"
#include "common/status_macros.h"
#include "engine/ep_rank.h"
#include "moe/balancer.h"

namespace switchyard {
namespace {

constexpr size_t kPlacementFileBytesMax = 64 << 20;

// phy2log [MoE layers][E + R], or the same rows for every layer of an even placement.
using Tables = std::vector<std::vector<int32_t>>;

absl::StatusOr<Tables> ReadTables(const std::string& path) {
  ASSIGN_OR_RETURN(const std::string text, ReadFile(path, kPlacementFileBytesMax));
  const auto json = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  const auto refuse = [&](const char* what) {
    return absl::InvalidArgumentError(absl::StrCat("expert-placement ", path, ": ", what));
  };
  if (!json.is_object() || !json.contains("phy2log") || !json["phy2log"].is_array()) {
    return refuse("an object with a list \"phy2log\" is wanted, as `switchyard balance` prints it");
  }
  Tables tables;
  for (const auto& row : json["phy2log"]) {
    if (!row.is_array() || row.size() > kBalancedReplicasMax) return refuse("phy2log: not rows");
    std::vector<int32_t>& table = tables.emplace_back();
    for (const auto& id : row) {
      if (!id.is_number_integer()) return refuse("phy2log: not integers");
      const auto value = id.get<int64_t>();
      if (value < 0 || value > INT32_MAX) return refuse("phy2log: an id is out of range");
      table.push_back(static_cast<int32_t>(value));
    }
  }
  return tables;
}

absl::StatusOr<Tables> EvenTables(int experts, int replicas, int ranks, size_t layers) {
  if (replicas % ranks != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("redundant-experts: ", experts, " experts and ", replicas - experts,
                     " redundant ones cannot be split evenly over ", ranks, " ranks"));
  }
  const std::vector<double> loads(experts, 1.0);
  ASSIGN_OR_RETURN(
      const std::vector<BalancedLayer> balanced,
      BalanceExperts({loads.data(), {1, loads.size()}}, {.replicas = replicas, .ranks = ranks}));
  return Tables(layers, balanced[0].physical_to_logical);
}

}  // namespace

absl::StatusOr<Placement> MakePlacement(const ModelConfig& config, const EpOptions& options) {
  const int experts = config.gate.experts;
  const auto moe_layers =
      static_cast<size_t>(std::count(config.layer_is_moe.begin(), config.layer_is_moe.end(), true));
  if (moe_layers == 0) {
    return absl::InvalidArgumentError("ep-peers: the model has no MoE layer: nothing to share");
  }
  if (options.redundant_experts < 0 || options.redundant_experts > kBalancedReplicasMax - experts) {
    return absl::InvalidArgumentError(absl::StrCat("redundant-experts is ",
                                                   options.redundant_experts, "; allowed are 0 to ",
                                                   kBalancedReplicasMax - experts));
  }
  Tables tables;
  if (options.placement_file.empty()) {
    ASSIGN_OR_RETURN(tables, EvenTables(experts, experts + options.redundant_experts,
                                        options.world(), moe_layers));
  } else {
    ASSIGN_OR_RETURN(tables, ReadTables(options.placement_file));
  }
  const size_t slots = tables.empty() ? 0 : tables[0].size();
  const bool rectangular = std::all_of(tables.begin(), tables.end(),
                                       [&](const auto& row) { return row.size() == slots; });
  if (tables.size() != moe_layers || !rectangular) {
    return absl::InvalidArgumentError(absl::StrCat("expert-placement: ", tables.size(),
                                                   " rows, wanted ", moe_layers,
                                                   " of the same length, one for each MoE layer"));
  }
  std::vector<int32_t> all;
  size_t next = 0;
  for (int l = 0; l < config.layers; ++l) {
    // A dense layer has no experts to place: any row will do.
    const auto& row = tables[config.layer_is_moe[l] ? next++ : 0];
    all.insert(all.end(), row.begin(), row.end());
  }
  return Placement::Create(1, experts, options.world(),
                           {all.data(), {static_cast<size_t>(config.layers), slots}});
}

}  // namespace switchyard
