#include "router/policy.h"

#include <gtest/gtest.h>

namespace switchyard {
namespace {

const std::set<WorkerId> kNone;

DecodeView Decode(uint64_t id, int64_t available, int running) {
  return {.id = WorkerId(id),
          .running = running,
          .kv_blocks_total = 100,
          .kv_blocks_available = available};
}

PrefillView Prefill(uint64_t id, int64_t queued) {
  return {.id = WorkerId(id), .queued_tokens = queued};
}

TEST(PolicyTest, PrefillWithTheShortestQueueAndThenTheLowestId) {
  const RouteRequest any{.tokens = 160, .avoid = &kNone};
  EXPECT_EQ(ChoosePrefill({Prefill(3, 50), Prefill(1, 70)}, any), WorkerId(3));
  EXPECT_EQ(ChoosePrefill({Prefill(3, 50), Prefill(1, 50)}, any), WorkerId(1));
  EXPECT_EQ(ChoosePrefill({{.id = WorkerId(1), .draining = true}}, any), std::nullopt);
  EXPECT_EQ(ChoosePrefill({{.id = WorkerId(1), .trusted = false}}, any), std::nullopt);
  const std::set<WorkerId> one = {WorkerId(1)};
  const RouteRequest avoid{.tokens = 160, .avoid = &one};
  EXPECT_EQ(ChoosePrefill({Prefill(1, 0), Prefill(2, 99)}, avoid), WorkerId(2));
  EXPECT_EQ(ChoosePrefill({Prefill(1, 0)}, avoid), std::nullopt);  // decode can do it
}

TEST(PolicyTest, APrefixAttractsUntilItsOwnerIsBusier) {
  const std::map<WorkerId, int> prefix = {{WorkerId(2), 128}};
  const RouteRequest request{.tokens = 160, .avoid = &kNone, .prefix_tokens = &prefix};
  const auto prefill = [&](int64_t queued) {
    return ChoosePrefill({Prefill(1, 0), Prefill(2, queued)}, request);
  };
  EXPECT_EQ(prefill(127), WorkerId(2));
  EXPECT_EQ(prefill(129), WorkerId(1));
  const auto decode = [&](int64_t available) {
    return ChooseDecode({Decode(1, 90, 1), Decode(2, available, 1)}, request)->id;
  };
  EXPECT_EQ(decode(71), WorkerId(2));  // 0.25 · 128 / 160 = 0.2 of the blocks
  EXPECT_EQ(decode(69), WorkerId(1));
  EXPECT_EQ(decode(5), WorkerId(1));  // no room
}

TEST(PolicyTest, DecodeComputesTheShortRestOfAPrefixItself) {
  const std::map<WorkerId, int> prefix = {{WorkerId(1), 128}};
  const std::vector<PrefillView> prefill = {Prefill(9, 0)};
  const auto by_prefill = [&](int64_t tokens) {
    return ChooseRoute(Disaggregate::kAuto,
                       {.tokens = tokens, .avoid = &kNone, .prefix_tokens = &prefix}, prefill,
                       {Decode(1, 100, 0)})
        ->prefill.has_value();
  };
  EXPECT_FALSE(by_prefill(128 + 63));
  EXPECT_TRUE(by_prefill(128 + 64));
}

TEST(PolicyTest, DecodeWithTheMostHeadroom) {
  const RouteRequest request{.tokens = 160, .avoid = &kNone};  // 11 blocks with the next token
  std::vector<DecodeView> views = {Decode(1, 40, 1), Decode(2, 60, 9)};
  EXPECT_EQ(ChooseDecode(views, request)->id, WorkerId(2));
  views[1].kv_blocks_promised = 30;
  EXPECT_EQ(ChooseDecode(views, request)->id, WorkerId(1));
  views = {Decode(2, 40, 1), Decode(1, 40, 1)};
  EXPECT_EQ(ChooseDecode(views, request)->id, WorkerId(1));
  views[1].trusted = false;
  EXPECT_EQ(ChooseDecode(views, request)->id, WorkerId(2));
}

TEST(PolicyTest, DecodeWithoutRoomIsTakenOnlyWhenItRunsNothing) {
  const RouteRequest request{.tokens = 160, .avoid = &kNone};
  EXPECT_EQ(ChooseDecode({Decode(1, 10, 1)}, request), nullptr);
  EXPECT_NE(ChooseDecode({Decode(1, 11, 1)}, request), nullptr);
  EXPECT_NE(ChooseDecode({Decode(1, 10, 0)}, request), nullptr);
}

TEST(PolicyTest, WhatFitsNowhereGoesToTheLargestAtOnce) {
  const RouteRequest request{.tokens = 2000, .avoid = &kNone};  // 126 blocks
  std::vector<DecodeView> views = {Decode(1, 50, 5), Decode(2, 50, 5)};
  views[0].kv_blocks_total = 110;
  views[1].kv_blocks_total = 125;
  ASSERT_NE(ChooseDecode(views, request), nullptr);
  EXPECT_EQ(ChooseDecode(views, request)->id, WorkerId(2));
  views[1].kv_blocks_total = 126;  // it fits, and waits for room
  EXPECT_EQ(ChooseDecode(views, request), nullptr);
  views[0].running = 0;  // too small, however idle
  EXPECT_EQ(ChooseDecode(views, request), nullptr);
}

TEST(PolicyTest, ModesDecideWhoComputesThePrompt) {
  const std::vector<PrefillView> prefill = {Prefill(9, 0)};
  const std::vector<DecodeView> decode = {Decode(1, 100, 0)};
  auto by_prefill = [&](Disaggregate mode, int64_t tokens, const std::vector<PrefillView>& p) {
    return ChooseRoute(mode, {.tokens = tokens, .avoid = &kNone}, p, decode)->prefill.has_value();
  };
  EXPECT_TRUE(by_prefill(Disaggregate::kAuto, 64, prefill));
  EXPECT_FALSE(by_prefill(Disaggregate::kAuto, 63, prefill));
  EXPECT_FALSE(by_prefill(Disaggregate::kAuto, 64, {}));
  EXPECT_TRUE(by_prefill(Disaggregate::kAlways, 1, prefill));
  EXPECT_FALSE(by_prefill(Disaggregate::kAlways, 1, {}));
  EXPECT_FALSE(by_prefill(Disaggregate::kNever, 1000, prefill));
  EXPECT_EQ(ChooseRoute(Disaggregate::kAlways,
                        {.tokens = 64, .may_hand_off = false, .avoid = &kNone}, prefill, decode),
            (Route{.decode = WorkerId(1), .prefill = std::nullopt}));
  EXPECT_EQ(ChooseRoute(Disaggregate::kAuto, {.tokens = 64, .avoid = &kNone}, prefill, {}),
            std::nullopt);
}

}  // namespace
}  // namespace switchyard
