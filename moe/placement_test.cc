#include "moe/placement.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace switchyard {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr int32_t kEmpty = Placement::kEmptySlot;

// Two layers, three experts, two ranks of two slots.
constexpr int32_t kTable[2][4] = {{0, 1, 2, 0}, {2, kEmpty, 1, 0}};

absl::StatusOr<Placement> Make(int experts, int ranks, const int32_t (&table)[2][4]) {
  return Placement::Create(7, experts, ranks, {&table[0][0], {2, 4}});
}

TEST(PlacementTest, TablesAgreeInBothDirections) {
  const auto p = Make(3, 2, kTable);
  ASSERT_TRUE(p.ok()) << p.status();
  EXPECT_EQ(p->version(), 7u);
  EXPECT_EQ(p->layers(), 2);
  EXPECT_EQ(p->experts(), 3);
  EXPECT_EQ(p->ranks(), 2);
  EXPECT_EQ(p->slots_per_rank(), 2);
  EXPECT_THAT(p->Replicas(0, 0),
              ElementsAre(Replica{ExpertId(0), RankId(0)}, Replica{ExpertId(3), RankId(1)}));
  EXPECT_THAT(p->Replicas(0, 1), ElementsAre(Replica{ExpertId(1), RankId(0)}));
  EXPECT_THAT(p->Replicas(1, 0), ElementsAre(Replica{ExpertId(3), RankId(1)}));
  EXPECT_THAT(p->Replicas(1, 2), ElementsAre(Replica{ExpertId(0), RankId(0)}));
  for (int l = 0; l < 2; ++l) {
    for (int s = 0; s < 4; ++s) EXPECT_EQ(p->Logical(l, ExpertId(s)), kTable[l][s]);
    EXPECT_THAT(p->Hosted(l, RankId(1)), ElementsAre(kTable[l][2], kTable[l][3]));
  }
}

TEST(PlacementTest, ConsecutivePositionsSpreadEvenly) {
  const int32_t table[5] = {0, 0, 1, 0, 2};
  const auto p = Placement::Create(1, 3, 5, {table, {1, 5}});
  ASSERT_TRUE(p.ok());
  for (const int64_t first : {int64_t{0}, int64_t{1000003}, INT64_MAX - 100}) {
    int tokens[5] = {};
    for (int i = 0; i < 30; ++i) {
      const Replica& r = p->Choose(0, 0, first + i);
      EXPECT_EQ(r, p->Choose(0, 0, first + i));
      EXPECT_EQ(p->Logical(0, r.physical), 0);
      ++tokens[r.rank.value()];
      EXPECT_EQ(p->Choose(0, 1, first + i).rank, RankId(2));
    }
    EXPECT_THAT(tokens, ElementsAre(10, 10, 0, 10, 0));
  }
}

TEST(PlacementTest, ReplicasShareTheirExpertsLoad) {
  const auto p = Make(3, 2, kTable);
  ASSERT_TRUE(p.ok());
  const double loads[3] = {10, 3, 1};
  EXPECT_THAT(p->RankLoads(0, loads), ElementsAre(8, 6));
  EXPECT_THAT(p->RankLoads(1, loads), ElementsAre(1, 13));
}

TEST(PlacementTest, InOrderHasEveryExpertOnce) {
  const auto p = Placement::InOrder(3, 2, 6, 3);
  ASSERT_TRUE(p.ok());
  for (int l = 0; l < 2; ++l) {
    for (int e = 0; e < 6; ++e) {
      EXPECT_THAT(p->Replicas(l, e), ElementsAre(Replica{ExpertId(e), RankId(e / 2)}));
    }
  }
  EXPECT_FALSE(Placement::InOrder(3, 2, 7, 3).ok());
  EXPECT_FALSE(Placement::InOrder(3, -1, 6, 3).ok());
  EXPECT_FALSE(Placement::InOrder(3, 1, 0, 3).ok());
}

TEST(PlacementTest, RefusesTablesThatAreNotWhole) {
  const auto refused = [](const auto& p, const char* why) {
    EXPECT_EQ(p.status().code(), absl::StatusCode::kInvalidArgument) << why;
    EXPECT_THAT(std::string(p.status().message()), HasSubstr(why));
  };
  refused(Make(3, 3, kTable), "4 slots cannot be split evenly over 3 ranks");
  refused(Make(3, 0, kTable), "0 ranks");
  refused(Make(0, 2, kTable), "0 experts");
  refused(Make(5, 2, kTable), "5 experts do not fit 4 slots");
  refused(Make(4, 2, kTable), "layer 0: expert 3 has no replica");
  refused(Make(3, 2, {{0, 1, 2, 0}, {1, 1, 0, kEmpty}}), "layer 1: expert 2 has no replica");
  refused(Make(3, 2, {{0, 1, 2, 0}, {0, 1, 2, 3}}), "layer 1, slot 3 has expert 3; there are 3");
  refused(Make(3, 2, {{0, 1, -2, 0}, {0, 1, 2, 0}}), "layer 0, slot 2 has expert -2");
  refused(Placement::Create(1, 1, 1, {nullptr, {1, 0}}), "0 slots");
}

TEST(PlacementTest, WithoutALostRankWhatStaysStaysAndWhatItHadIsDealtOut) {
  // Two layers, 6 experts on 3 ranks; layer 0 has a second replica of expert 5 on rank 0.
  const std::vector<int32_t> table = {0, 1, 5, 2, 3, 3, 4, 5, 5,  //
                                      0, 1, 1, 2, 3, 3, 4, 5, 5};
  const auto whole = Placement::Create(1, 6, 3, {table.data(), {2, 9}});
  ASSERT_TRUE(whole.ok()) << whole.status();
  const auto rest = whole->Without(7, {true, true, false});
  ASSERT_TRUE(rest.ok()) << rest.status();
  EXPECT_EQ(rest->version(), 7u);
  const auto hosted = [&](int layer, int rank) {
    const auto row = rest->Hosted(layer, RankId(rank));
    return std::vector<int32_t>(row.begin(), row.end());
  };
  EXPECT_EQ(hosted(0, 0), (std::vector<int32_t>{0, 1, 5, 4}));  // 5 has a replica: only 4 is lost
  EXPECT_EQ(hosted(0, 1), (std::vector<int32_t>{2, 3, 3, -1}));
  EXPECT_EQ(hosted(1, 0), (std::vector<int32_t>{0, 1, 1, 4}));
  EXPECT_EQ(hosted(1, 1), (std::vector<int32_t>{2, 3, 3, 5}));
  for (int l = 0; l < 2; ++l) EXPECT_EQ(hosted(l, 2), std::vector<int32_t>(4, -1));
  EXPECT_FALSE(whole->Without(7, {false, false, false}).ok());
}

}  // namespace
}  // namespace switchyard
