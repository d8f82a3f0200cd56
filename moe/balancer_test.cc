#include "moe/balancer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <numeric>
#include <random>
#include <set>

#include "common/file.h"
#include "moe/load_statistics.h"
#include "moe/placement.h"

namespace switchyard {
namespace {

using ::testing::HasSubstr;
using Json = nlohmann::json;

Matrix<const double> OneLayer(const std::vector<double>& loads) {
  return {loads.data(), {1, loads.size()}};
}

absl::StatusOr<BalancedLayer> Balance(const std::vector<double>& loads,
                                      const BalanceOptions& options) {
  auto layers = BalanceExperts(OneLayer(loads), options);
  if (!layers.ok()) return layers.status();
  return layers->at(0);
}

Placement PlacementOf(const BalancedLayer& layer, int ranks) {
  const auto& table = layer.physical_to_logical;
  auto placement = Placement::Create(1, static_cast<int>(layer.logical_to_physical.size()), ranks,
                                     {table.data(), {1, table.size()}});
  EXPECT_TRUE(placement.ok()) << placement.status();
  return *std::move(placement);
}

double Balancedness(const BalancedLayer& layer, const std::vector<double>& loads, int ranks) {
  return RankBalance::Of(PlacementOf(layer, ranks).RankLoads(0, loads)).balancedness();
}

// Loads of `experts` by Zipf's law, in random order.
std::vector<double> ZipfLoads(std::mt19937& rng, int experts, double exponent) {
  std::vector<double> loads(experts);
  for (int e = 0; e < experts; ++e) loads[e] = std::floor(1e6 / std::pow(e + 1, exponent));
  std::shuffle(loads.begin(), loads.end(), rng);
  return loads;
}

Json Vectors() {
  const auto text = ReadFile("tests/data/eplb-vectors.json", 1 << 20);
  EXPECT_TRUE(text.ok()) << text.status();
  return Json::parse(*text);
}

TEST(BalancerTest, PublishedFormEqualsPublishedVectors) {
  const Json vectors = Vectors();
  ASSERT_EQ(vectors["eplb"].size(), 4u);
  for (const Json& v : vectors["eplb"]) {
    SCOPED_TRACE(v["policy"].get<std::string>() + ", layer " + v["layer"].dump());
    const auto loads = v["weight"].get<std::vector<double>>();
    const int ranks = v["num_gpus"];
    const auto layer = Balance(loads, {.replicas = v["num_replicas"],
                                       .ranks = ranks,
                                       .groups = v["num_groups"],
                                       .nodes = v["num_nodes"],
                                       .allow_duplicates = true});
    ASSERT_TRUE(layer.ok()) << layer.status();
    EXPECT_EQ(Json(layer->physical_to_logical), v["phy2log"]);
    for (size_t e = 0; e < loads.size(); ++e) {
      auto slots = layer->logical_to_physical[e];
      EXPECT_EQ(slots.size(), v["logcnt"][e]);
      slots.resize(v["log2phy"][e].size(), -1);
      EXPECT_EQ(Json(slots), v["log2phy"][e]) << "expert " << e;
    }
    const auto rank_loads = PlacementOf(*layer, ranks).RankLoads(0, loads);
    for (int r = 0; r < ranks; ++r) EXPECT_NEAR(rank_loads[r], v["gpu_load"][r], 1e-4);
    const RankBalance balance = RankBalance::Of(rank_loads);
    EXPECT_NEAR(balance.balancedness(), v["balancedness"], 1e-6);
    EXPECT_NEAR(balance.max / balance.mean, v["max_over_mean"], 1e-6);
  }
}

// The ranks that host an expert twice.
std::vector<int> RanksWithDuplicates(const BalancedLayer& layer, int ranks) {
  const Placement placement = PlacementOf(layer, ranks);
  std::vector<int> found;
  for (int r = 0; r < ranks; ++r) {
    const auto hosted = placement.Hosted(0, RankId(r));
    if (std::set<int>(hosted.begin(), hosted.end()).size() < hosted.size()) found.push_back(r);
  }
  return found;
}

TEST(BalancerTest, DefaultFormHasNoDuplicatesWherePublishedHas) {
  int with_duplicates = 0;
  const Json vectors = Vectors();
  for (const Json& v : vectors["eplb"]) {
    const auto loads = v["weight"].get<std::vector<double>>();
    BalanceOptions o{.replicas = v["num_replicas"],
                     .ranks = v["num_gpus"],
                     .groups = v["num_groups"],
                     .nodes = v["num_nodes"]};
    const auto without = Balance(loads, o);
    o.allow_duplicates = true;
    const auto with = Balance(loads, o);
    ASSERT_TRUE(without.ok() && with.ok());
    EXPECT_EQ(Json(RanksWithDuplicates(*with, o.ranks)), v["gpus_with_duplicate_replica"]);
    EXPECT_EQ(RanksWithDuplicates(*without, o.ranks), std::vector<int>());
    if (RanksWithDuplicates(*with, o.ranks).empty()) {
      EXPECT_EQ(with->physical_to_logical, without->physical_to_logical);
    } else {
      ++with_duplicates;
    }
  }
  EXPECT_EQ(with_duplicates, 2);
}

// What holds for every result: tables agree, every expert is there, nodes keep their groups.
void CheckLayer(const BalancedLayer& layer, int experts, const BalanceOptions& o) {
  ASSERT_EQ(layer.physical_to_logical.size(), static_cast<size_t>(o.replicas));
  ASSERT_EQ(layer.logical_to_physical.size(), static_cast<size_t>(experts));
  size_t replicas = 0;
  for (int e = 0; e < experts; ++e) {
    replicas += layer.logical_to_physical[e].size();
    ASSERT_FALSE(layer.logical_to_physical[e].empty()) << "expert " << e;
    for (const int p : layer.logical_to_physical[e]) {
      EXPECT_EQ(layer.physical_to_logical.at(p), e);
    }
  }
  EXPECT_EQ(replicas, static_cast<size_t>(o.replicas));
  std::vector<std::set<int>> nodes_of_group(o.groups);
  for (int p = 0; p < o.replicas; ++p) {
    const int group = layer.physical_to_logical[p] / (experts / o.groups);
    nodes_of_group[group].insert(p / (o.replicas / o.nodes));
  }
  for (const auto& nodes : nodes_of_group) EXPECT_EQ(nodes.size(), 1u);
  EXPECT_TRUE(o.allow_duplicates || RanksWithDuplicates(layer, o.ranks).empty());
}

std::vector<double> RandomLoads(std::mt19937& rng, int experts) {
  switch (rng() % 4) {
    case 0:
      return ZipfLoads(rng, experts, 0.5 + rng() % 3);
    case 1:
      return std::vector<double>(experts, rng() % 2);  // all alike, or none at all
    case 2: {
      std::vector<double> one(experts);  // all on one expert
      one[rng() % experts] = 1e30;
      return one;
    }
    default: {
      std::vector<double> few(experts);  // many ties
      for (double& load : few) load = rng() % 4;
      return few;
    }
  }
}

TEST(BalancerTest, EveryResultIsWhole) {
  for (unsigned seed = 0; seed < 1500; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    std::mt19937 rng(seed);
    BalanceOptions o;
    o.nodes = 1 + rng() % 3;
    o.groups = o.nodes * (1 + rng() % 3);
    o.ranks = o.nodes * (1 + rng() % 6);
    o.allow_duplicates = rng() % 4 == 0;
    const int experts = o.groups * (1 + rng() % 8);
    const int least = (experts + o.ranks - 1) / o.ranks;                  // slots per rank
    const int most = o.allow_duplicates ? 2 * least : experts / o.nodes;  // every expert everywhere
    if (most < least) continue;
    o.replicas = o.ranks * (least + rng() % (most - least + 1));
    const auto layer = Balance(RandomLoads(rng, experts), o);
    ASSERT_TRUE(layer.ok()) << layer.status();
    ASSERT_NO_FATAL_FAILURE(CheckLayer(*layer, experts, o));
    if (HasFailure()) return;
  }
}

TEST(BalancerTest, RedundancyBalancesZipfLoads) {
  for (unsigned seed = 0; seed < 60; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    std::mt19937 rng(seed);
    const int ranks = 4 << rng() % 3, experts = 64;
    const auto loads = ZipfLoads(rng, experts, 0.6 + 0.2 * (seed % 5));
    const auto balancedness = [&](int replicas) {
      const auto layer = Balance(loads, {.replicas = replicas, .ranks = ranks});
      EXPECT_TRUE(layer.ok()) << layer.status();
      return Balancedness(*layer, loads, ranks);
    };
    const double in_order =
        RankBalance::Of(Placement::InOrder(0, 1, experts, ranks)->RankLoads(0, loads))
            .balancedness();
    const double packed = balancedness(experts), redundant = balancedness(experts + ranks);
    EXPECT_GE(packed, in_order);
    EXPECT_GE(redundant, packed);
    EXPECT_GT(balancedness(experts + 2 * ranks), in_order);
  }
}

TEST(BalancerTest, LayersAreIndependent) {
  std::mt19937 rng(5);
  const auto a = ZipfLoads(rng, 16, 1), b = ZipfLoads(rng, 16, 1);
  std::vector<double> both = a;
  both.insert(both.end(), b.begin(), b.end());
  const BalanceOptions o{.replicas = 24, .ranks = 4};
  const auto layers = BalanceExperts({both.data(), {2, 16}}, o);
  ASSERT_TRUE(layers.ok());
  EXPECT_EQ((*layers)[0].physical_to_logical, Balance(a, o)->physical_to_logical);
  EXPECT_EQ((*layers)[1].physical_to_logical, Balance(b, o)->physical_to_logical);
  EXPECT_TRUE(BalanceExperts({nullptr, {0, 16}}, o)->empty());
}

TEST(BalancerTest, RefusesWithTheNumbers) {
  const std::vector<double> twelve(12, 1);
  const auto refused = [&](const BalanceOptions& o, const char* why) {
    const auto status = Balance(twelve, o).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << why;
    EXPECT_THAT(std::string(status.message()), HasSubstr(why));
  };
  refused({.replicas = 15, .ranks = 8},
          "12 experts + 3 redundant replicas = 15 cannot be split evenly over 8 ranks");
  refused({.replicas = 11, .ranks = 1}, "replicas is 11; 12 to 131072");
  refused({.replicas = 16, .ranks = 0}, "ranks is 0; 1 to 1024");
  refused({.replicas = 16, .ranks = 8, .groups = 0}, "groups is 0");
  refused({.replicas = 16, .ranks = 8, .groups = 4, .nodes = 0}, "nodes is 0");
  refused({.replicas = 16, .ranks = 8, .groups = 5},
          "12 experts cannot be split evenly over 5 groups");
  refused({.replicas = 16, .ranks = 8, .groups = 3, .nodes = 2},
          "3 groups cannot be split evenly over 2 nodes");
  refused({.replicas = 16, .ranks = 8, .groups = 3, .nodes = 3},
          "8 ranks cannot be split evenly over 3 nodes");
  refused({.replicas = 26, .ranks = 2}, "a rank has 13 slots, and its node only 12 experts");
  refused({.replicas = 28, .ranks = 4, .groups = 2, .nodes = 2}, "7 slots, and its node only 6");
  EXPECT_TRUE(Balance(twelve, {.replicas = 26, .ranks = 2, .allow_duplicates = true}).ok());
  EXPECT_TRUE(Balance(twelve, {.replicas = 24, .ranks = 2}).ok());

  for (const double bad : std::vector<double>{-1, NAN, INFINITY, 1.1e30}) {
    const double loads[2][2] = {{1, 1}, {1, bad}};
    const auto status =
        BalanceExperts({&loads[0][0], {2, 2}}, {.replicas = 2, .ranks = 1}).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), HasSubstr("row 1, column 1"));
  }
  const std::vector<double> many(kBalancedLayersMax + 1, 1);
  EXPECT_FALSE(BalanceExperts({many.data(), {many.size(), 1}}, {.replicas = 1, .ranks = 1}).ok());
  EXPECT_FALSE(Balance({}, {.replicas = 1, .ranks = 1}).ok());
  const std::vector<double> wide(kBalancedExpertsMax + 1, 1);
  EXPECT_FALSE(Balance(wide, {.replicas = 1 << 17, .ranks = 1}).ok());
}

}  // namespace
}  // namespace switchyard
