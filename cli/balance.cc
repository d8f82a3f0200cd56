// switchyard balance: expert loads on stdin to a balanced placement on stdout, both JSON.
#include <iostream>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "cli/command.h"
#include "common/status_macros.h"
#include "moe/balancer.h"
#include "moe/load_statistics.h"
#include "moe/placement.h"

namespace switchyard {
namespace {

using Json = nlohmann::json;

// 1024 layers of 1024 experts, 16 characters each. The parsed form is up to 20 times as large.
constexpr size_t kInputBytesMax = 16 << 20;

struct Loads {
  std::vector<double> values;  // [L, E]
  size_t layers = 0, experts = 0;
  Matrix<const double> view() const { return {values.data(), {layers, experts}}; }
};

absl::StatusOr<Json> ReadJson(std::istream& in) {
  std::string text(kInputBytesMax + 1, '\0');
  in.read(text.data(), static_cast<std::streamsize>(text.size()));
  text.resize(in.gcount());
  if (text.size() > kInputBytesMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("stdin: more than ", kInputBytesMax, " bytes of loads"));
  }
  try {
    return Json::parse(text);
  } catch (const Json::exception& error) {  // its text names line and column
    return absl::InvalidArgumentError(absl::StrCat("stdin: ", error.what()));
  }
}

absl::Status AddRow(const Json& row, Loads& loads) {
  const size_t l = loads.layers;
  if (!row.is_array()) {
    return absl::InvalidArgumentError(
        absl::StrCat("row ", l, " is a ", row.type_name(), ", not a list of loads"));
  }
  if (l == 0) loads.experts = row.size();
  if (row.size() != loads.experts) {
    return absl::InvalidArgumentError(
        absl::StrCat("row ", l, " has ", row.size(), " columns, row 0 has ", loads.experts));
  }
  for (size_t e = 0; e < row.size(); ++e) {
    if (!row[e].is_number()) {
      return absl::InvalidArgumentError(
          absl::StrCat("row ", l, ", column ", e, " is a ", row[e].type_name(), ", not a number"));
    }
    loads.values.push_back(row[e].get<double>());
  }
  ++loads.layers;
  return absl::OkStatus();
}

absl::StatusOr<Loads> ParseLoads(const Json& rows) {
  if (!rows.is_array() || rows.empty()) {
    return absl::InvalidArgumentError(
        "stdin: a list with one list of expert loads per layer is wanted");
  }
  Loads loads;
  for (const Json& row : rows) RETURN_IF_ERROR(AddRow(row, loads));
  return loads;
}

std::vector<double> Balancedness(const Placement& placement, const Loads& loads) {
  std::vector<double> per_layer;
  for (size_t l = 0; l < loads.layers; ++l) {
    per_layer.push_back(RankBalance::Of(placement.RankLoads(static_cast<int>(l),
                                                            {loads.view().row(l), loads.experts}))
                            .balancedness());
  }
  return per_layer;
}

class BalanceCommand final : public Command {
 public:
  std::string name() const override { return "balance"; }
  std::string help() const override {
    return "expert loads [layers][experts] as JSON in, a balanced placement out";
  }

  void AddFlags(CLI::App& app) override {
    app.add_option("--num-replicas", options_.replicas, "physical experts of a layer")->required();
    app.add_option("--num-gpus", options_.ranks, "ranks that share them evenly")->required();
    app.add_option("--num-groups", options_.groups, "groups of experts that stay on one node")
        ->capture_default_str();
    app.add_option("--num-nodes", options_.nodes, "nodes that share the ranks evenly")
        ->capture_default_str();
    app.add_flag("--allow-duplicates", options_.allow_duplicates,
                 "let a rank have two replicas of one expert, as the published algorithm does");
  }

  absl::StatusOr<int> Run(const CLI::App&) override {
    ASSIGN_OR_RETURN(const Json json, ReadJson(std::cin));
    ASSIGN_OR_RETURN(const Loads loads, ParseLoads(json));
    ASSIGN_OR_RETURN(const auto layers, BalanceExperts(loads.view(), options_));
    const int experts = static_cast<int>(loads.experts);
    std::vector<int32_t> table;  // [L, P]
    Json phy2log = Json::array(), logcnt = Json::array();
    for (const BalancedLayer& layer : layers) {
      table.insert(table.end(), layer.physical_to_logical.begin(), layer.physical_to_logical.end());
      phy2log.push_back(layer.physical_to_logical);
      logcnt.push_back(Json::array());
      for (const auto& replicas : layer.logical_to_physical) {
        logcnt.back().push_back(replicas.size());
      }
    }
    ASSIGN_OR_RETURN(
        const Placement after,
        Placement::Create(0, experts, options_.ranks,
                          {table.data(), {loads.layers, static_cast<size_t>(options_.replicas)}}));
    Json before;  // null if the experts alone cannot be split evenly
    if (experts % options_.ranks == 0) {
      ASSIGN_OR_RETURN(
          const Placement in_order,
          Placement::InOrder(0, static_cast<int>(loads.layers), experts, options_.ranks));
      before = Balancedness(in_order, loads);
    }
    std::cout << Json{{"phy2log", std::move(phy2log)},
                      {"logcnt", std::move(logcnt)},
                      {"balancedness",
                       {{"before", std::move(before)}, {"after", Balancedness(after, loads)}}}}
              << std::endl;
    return std::cout.good() ? 0 : 1;
  }

 private:
  BalanceOptions options_;
};

}  // namespace

std::unique_ptr<Command> MakeBalance() { return std::make_unique<BalanceCommand>(); }

}  // namespace switchyard
