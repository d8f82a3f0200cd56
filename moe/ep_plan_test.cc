#include "moe/ep_plan.h"

#include <gtest/gtest.h>

#include <cstring>
#include <map>
#include <set>

#include "moe/ep_route.h"
#include "moe/ep_testing.h"
#include "moe/ep_wire.h"
#include "moe/row_codec.h"

namespace switchyard {
namespace {

using switchyard::testing::RandomPlacement;
using switchyard::testing::RandomTokens;

std::vector<std::byte> Bytes(const RankPlan& plan) {
  std::vector<std::byte> bytes(
      PlanBytes(plan.counts.size(), plan.slots.size(), !plan.weights.empty()));
  WritePlan(plan, bytes.data());
  return bytes;
}

TEST(EpPlanTest, EveryChoiceOfATokenHasOneRowOfItsExpert) {
  for (unsigned seed = 0; seed < 50; ++seed) {
    std::mt19937 rng(seed);
    const int ranks = 1 + static_cast<int>(rng() % 4), top_k = 1 + static_cast<int>(rng() % 5);
    const Placement placement =
        RandomPlacement(rng, 2, 12, ranks * static_cast<int>(rng() % 2) * 12, ranks);
    const int slots = placement.slots_per_rank();
    const auto t = RandomTokens(rng, rng() % 40, 12, top_k, 1);
    std::vector<RankPlan> plans(ranks);
    std::vector<int32_t> rank_of;
    MakePlans(placement, 1, t.e(), t.positions, plans, &rank_of);
    ASSERT_EQ(rank_of.size(), t.experts.size());
    for (int r = 0; r < ranks; ++r) {
      RankPlan read;
      ASSERT_TRUE(ReadPlan(Bytes(plans[r]), plans[r].counts.size(), plans[r].slots.size(),
                           {top_k, slots}, &read)
                      .ok())
          << "seed " << seed;
      EXPECT_EQ(read.counts, plans[r].counts);
      EXPECT_EQ(read.slots, plans[r].slots);
      EXPECT_EQ(std::set<int32_t>(plans[r].tokens.begin(), plans[r].tokens.end()).size(),
                plans[r].tokens.size())
          << "a token goes once to a rank";
      // Walk the choices in order; the plan's entries must be those of this rank.
      size_t entry = 0;
      for (size_t i = 0; i < rank_of.size(); ++i) {
        if (rank_of[i] != r) continue;
        EXPECT_EQ(placement.Logical(1, ExpertId(r * slots + read.slots[entry])), t.experts[i]);
        ++entry;
      }
      EXPECT_EQ(entry, read.slots.size());
    }
  }
}

TEST(EpPlanTest, ReducedPlansCarryWeightsAndBringOneRowFromEachRank) {
  std::mt19937 rng(8);
  const Placement placement = RandomPlacement(rng, 1, 12, 0, 3);
  const auto t = RandomTokens(rng, 31, 12, 5, 1);
  std::vector<RankPlan> plans(3);
  std::vector<int32_t> rank_of;
  MakePlans(placement, 0, t.e(), t.positions, plans, &rank_of, t.w());
  std::vector<ReturningRow> rows;
  OrderReduced(rank_of, 5, &rows);
  std::map<int32_t, std::vector<float>> sent;  // by token: weights in slot order, of any rank
  size_t from_ranks = 0;
  for (const RankPlan& plan : plans) {
    RankPlan read;
    ASSERT_TRUE(
        ReadPlan(Bytes(plan), plan.counts.size(), plan.slots.size(), {5, 4, true}, &read).ok());
    EXPECT_EQ(read.slots, plan.slots);
    EXPECT_EQ(read.weights, plan.weights);
    EXPECT_FALSE(ReadPlan(Bytes(plan), plan.counts.size(), plan.slots.size(), {5, 4}, &read).ok());
    from_ranks += plan.counts.size();
    size_t entry = 0;
    for (size_t i = 0; i < plan.tokens.size(); ++i) {
      for (int n = 0; n < plan.counts[i]; ++n) {
        sent[plan.tokens[i]].push_back(plan.weights[entry++]);
      }
    }
  }
  for (auto& [token, weights] : sent) {
    std::vector<float> wanted(t.w().row(token), t.w().row(token) + 5);
    std::sort(weights.begin(), weights.end());
    std::sort(wanted.begin(), wanted.end());
    EXPECT_EQ(weights, wanted);
  }
  EXPECT_EQ(sent.size(), t.count());
  ASSERT_EQ(rows.size(), from_ranks);
  for (size_t i = 1; i < rows.size(); ++i) {
    EXPECT_TRUE(rows[i - 1].token < rows[i].token ||
                (rows[i - 1].token == rows[i].token && rows[i - 1].rank < rows[i].rank));
  }
}

TEST(EpPlanTest, RowsOfASlotAreTogetherAndEachIsTakenOnce) {
  std::mt19937 rng(3);
  std::vector<RankPlan> plans(3);
  for (RankPlan& plan : plans) {
    for (int i = 0; i < 20; ++i) {
      plan.counts.push_back(2);
      plan.slots.push_back(rng() % 5);
      plan.slots.push_back(rng() % 5);
    }
  }
  Grouping g;
  ASSERT_TRUE(GroupByExpert(plans, 5, &g).ok());
  EXPECT_EQ(g.offsets.front(), 0);
  EXPECT_EQ(g.offsets.back(), 120);
  std::set<int32_t> taken;
  for (size_t p = 0; p < plans.size(); ++p) {
    for (size_t i = 0; i < plans[p].slots.size(); ++i) {
      const int32_t row = g.rows[p][i];
      EXPECT_GE(row, g.offsets[plans[p].slots[i]]);
      EXPECT_LT(row, g.offsets[plans[p].slots[i] + 1]);
      EXPECT_TRUE(taken.insert(row).second);
    }
  }
}

// What N ranks do with their blocks, on numbers in the place of rows: (token, expert) must come
// home to the slot that chose it.
TEST(EpRouteTest, BlocksBringEveryOutputToItsSlot) {
  for (unsigned seed = 0; seed < 40; ++seed) {
    std::mt19937 rng(seed);
    const int ranks = 1 + static_cast<int>(rng() % 4), top_k = 1 + static_cast<int>(rng() % 5);
    const Placement placement =
        RandomPlacement(rng, 1, 12, ranks * static_cast<int>(rng() % 2) * 12, ranks);
    const int slots = placement.slots_per_rank();
    std::vector<switchyard::testing::Tokens> tokens;
    std::vector<std::vector<RankPlan>> out(ranks, std::vector<RankPlan>(ranks)), in = out;
    std::vector<std::vector<int32_t>> rank_of(ranks);
    for (int r = 0; r < ranks; ++r) {
      tokens.push_back(RandomTokens(rng, rng() % 30, 12, top_k, 1));
      MakePlans(placement, 0, tokens[r].e(), tokens[r].positions, out[r], &rank_of[r]);
      for (int to = 0; to < ranks; ++to) in[to][r] = out[r][to];
    }
    std::vector<Grouping> grouping(ranks);
    std::vector<EpRoute> route(ranks);
    for (int r = 0; r < ranks; ++r) {
      ASSERT_TRUE(GroupByExpert(in[r], slots, &grouping[r]).ok());
      MakeRoute(out[r], in[r], rank_of[r], grouping[r], &route[r]);
    }
    // Moves blocks; both ends of each must agree on its rows.
    const auto move = [&](const std::vector<std::vector<int64_t>>& rows, BlockFirsts EpRoute::*from,
                          BlockFirsts EpRoute::*to) {
      std::vector<std::vector<int64_t>> came(ranks);
      for (int r = 0; r < ranks; ++r) {
        for (int s = 0; s < ranks; ++s) {
          const BlockFirsts &sent = route[s].*from, &wanted = route[r].*to;
          EXPECT_EQ(sent[r + 1] - sent[r], wanted[s + 1] - wanted[s]) << "seed " << seed;
          came[r].insert(came[r].end(), rows[s].begin() + sent[r], rows[s].begin() + sent[r + 1]);
        }
      }
      return came;
    };
    std::vector<std::vector<int64_t>> sent(ranks), back(ranks);
    for (int r = 0; r < ranks; ++r) {
      for (const int32_t t : route[r].out) sent[r].push_back(r * 1000 + t);
    }
    const auto came = move(sent, &EpRoute::out_first, &EpRoute::in_first);
    for (int r = 0; r < ranks; ++r) {
      std::vector<int64_t> outputs;
      ASSERT_EQ(came[r].size(), grouping[r].tokens);
      for (int s = 0; s < slots; ++s) {
        const int expert = placement.Logical(0, ExpertId(r * slots + s));
        for (int32_t i = grouping[r].offsets[s]; i < grouping[r].offsets[s + 1]; ++i) {
          outputs.push_back(came[r][grouping[r].index[i]] * 100 + expert);
        }
      }
      for (const int32_t i : route[r].back) back[r].push_back(outputs[i]);
    }
    const auto home = move(back, &EpRoute::back_first, &EpRoute::home_first);
    for (int r = 0; r < ranks; ++r) {
      ASSERT_EQ(route[r].where.size(), tokens[r].experts.size());
      for (size_t i = 0; i < route[r].where.size(); ++i) {
        const auto token = static_cast<int64_t>(i / top_k);
        ASSERT_EQ(home[r][route[r].where[i]], (r * 1000 + token) * 100 + tokens[r].experts[i])
            << "seed " << seed << ", rank " << r;
      }
    }
  }
}

TEST(EpPlanTest, RefusesPlansThatCannotBe) {
  RankPlan plan{{}, {2, 1}, {0, 3, 1}, {}};
  const std::vector<std::byte> good = Bytes(plan);
  RankPlan read;
  ASSERT_TRUE(ReadPlan(good, 2, 3, {2, 4}, &read).ok());
  EXPECT_FALSE(ReadPlan(good, 2, 2, {2, 4}, &read).ok());        // size
  EXPECT_FALSE(ReadPlan(good, 2, 3, {1, 4}, &read).ok());        // more than top-k
  EXPECT_FALSE(ReadPlan(good, 2, 3, {2, 3}, &read).ok());        // slot 3 of 3
  EXPECT_FALSE(ReadPlan(good, 2, 3, {2, 4, true}, &read).ok());  // no weights
  EXPECT_FALSE(ReadPlan(Bytes({{}, {1, 1}, {0, 3, 1}, {}}), 2, 3, {2, 4}, &read).ok());  // sum
  EXPECT_FALSE(ReadPlan(Bytes({{}, {0, 2}, {0, 1}, {}}), 2, 2, {2, 4}, &read).ok());     // none
}

TEST(EpPlanTest, HellosSurviveTheWireAndDamageIsRefused) {
  EpHello h;
  h.rank = 1;
  h.world = 4;
  h.incarnation = 77;
  h.last_epoch = 3;
  h.config = "model";
  h.host_id = "host";
  h.lanes = {"shm", "tcp"};
  h.ucx_address = std::string("a\0b", 3);
  h.ring_token = 5;
  h.ring_bytes = 1 << 20;
  h.ring_ucx_address = "posix";
  h.ring_rkey = "key";
  h.ring_address = 1234;
  const std::string bytes = EncodeEpHello(h);
  auto back = DecodeEpHello(bytes);
  ASSERT_TRUE(back.ok()) << back.status();
  EXPECT_EQ(EncodeEpHello(*back), bytes);
  EXPECT_EQ(back->ucx_address, h.ucx_address);
  for (size_t n = 0; n < bytes.size(); ++n) {
    EXPECT_FALSE(DecodeEpHello(bytes.substr(0, n)).ok()) << n;
  }
  EXPECT_FALSE(DecodeEpHello(bytes + "x").ok());
  h.rank = 4;
  EXPECT_FALSE(DecodeEpHello(EncodeEpHello(h)).ok());
  std::mt19937 rng(1);
  for (int i = 0; i < 2000; ++i) {  // must not crash; lengths are the interesting part
    std::string damaged = bytes;
    damaged[rng() % damaged.size()] = static_cast<char>(rng());
    (void)DecodeEpHello(damaged);
  }
}

TEST(EpPlanTest, HellosThatDifferAreRefusedWithBothValues) {
  EpHello mine;
  mine.world = 3;
  mine.config = "model tokens:64 tensor:1";
  mine.host_id = "host";
  mine.lanes = {"shm", "tcp"};
  mine.ring_bytes = 1 << 20;
  EpHello same = mine;
  same.rank = 2;
  EXPECT_TRUE(CheckEpHello(mine, 2, same).ok());
  EXPECT_TRUE(SharesMemory(mine, same));
  EXPECT_TRUE(absl::IsInvalidArgument(CheckEpHello(mine, 1, same)));
  const auto expect = [&](void (*change)(EpHello*), const char* theirs, const char* wanted) {
    EpHello other = same;
    change(&other);
    const absl::Status s = CheckEpHello(mine, 2, other);
    EXPECT_FALSE(s.ok());
    EXPECT_NE(s.message().find(theirs), s.message().npos) << s;
    EXPECT_NE(s.message().find(wanted), s.message().npos) << s;
    EXPECT_EQ(s.message().find("tensor:1"), s.message().npos) << "the same on both: " << s;
  };
  expect([](EpHello* h) { h->world = 4; }, "of 4", "of 3");
  expect([](EpHello* h) { h->config = "model tokens:32 tensor:1"; }, "\"tokens:32\"",
         "\"tokens:64\"");
  expect([](EpHello* h) { h->ring_bytes = 1 << 16; }, "65536", "1048576");
  mine.lanes = {"shm"};
  expect([](EpHello* h) { h->host_id = "another"; }, "\"shm,tcp\"", "\"shm\"");
}

TEST(RowCodecTest, RoundsAsToBf16DoesAndSumsInTwoRoundings) {
  std::mt19937 rng(9);
  std::vector<float> x(1003);
  for (float& v : x) v = std::bit_cast<float>(static_cast<uint32_t>(rng()));  // NaNs too
  for (const DType dtype : {DType::kBfloat16, DType::kFloat32}) {
    const RowCodec& codec = RowCodecOf(dtype);
    std::vector<std::byte> wire(x.size() * SizeOf(dtype));
    std::vector<float> back(x.size());
    codec.encode(x.data(), x.size(), wire.data());
    const ConstRows on_wire(wire.data(), dtype, 1, x.size(), wire.size());
    for (size_t i = 0; i < x.size(); ++i) back[i] = on_wire(0, i);
    for (size_t i = 0; i < x.size(); ++i) {
      const float wanted = dtype == DType::kBfloat16 ? RoundToBf16(x[i]) : x[i];
      ASSERT_EQ(std::bit_cast<uint32_t>(back[i]), std::bit_cast<uint32_t>(wanted)) << x[i];
    }
    // 17 rows: each as far into the first as its number says, in one call and in several.
    constexpr size_t kRows = 17;
    const size_t n = x.size() - kRows;
    std::vector<float> weights(kRows), wanted(n), y(n);
    std::vector<const std::byte*> rows(kRows);
    for (size_t k = 0; k < kRows; ++k) {
      weights[k] = static_cast<float>(rng()) * 0x1p-32f - 0.5f;
      rows[k] = wire.data() + k * SizeOf(dtype);
      for (size_t i = 0; i < n; ++i) {
        const float product = weights[k] * back[k + i];
        wanted[i] = k == 0 ? product : wanted[i] + product;
      }
    }
    for (const size_t cut : {17, 1, 3, 8, 12}) {
      for (size_t k = 0; k < kRows; k += cut) {
        codec.sum(k > 0, &weights[k], &rows[k], std::min(cut, kRows - k), n, y.data());
      }
      for (size_t i = 0; i < n; ++i) {
        if (std::isnan(wanted[i])) {
          ASSERT_TRUE(std::isnan(y[i]));
        } else {
          ASSERT_EQ(std::bit_cast<uint32_t>(y[i]), std::bit_cast<uint32_t>(wanted[i]));
        }
      }
    }
  }
}

// What experts with integer weights make of a row of BF16.
std::vector<int8_t> Codes(const std::vector<std::byte>& row, std::vector<float>* scales) {
  std::vector<float> x(row.size() / sizeof(Bf16));
  RowCodecOf(DType::kBfloat16).decode(row.data(), x.size(), x.data());
  std::vector<int8_t> codes(x.size());
  scales->clear();
  for (size_t i = 0; i < x.size(); i += kInt8Group) {
    const size_t n = std::min(kInt8Group, x.size() - i);
    scales->push_back(QuantizeInt8(x.data() + i, n, codes.data() + i));
  }
  return codes;
}

TEST(TokenCodecTest, WhatTravelsAs8BitsIsQuantisedToTheSameAgain) {
  std::mt19937 rng(3);
  std::normal_distribution<float> normal;
  for (int round = 0; round < 3000; ++round) {
    const size_t n = round < 2000 ? kInt8Group : 1 + rng() % 400;
    const float size = std::ldexp(1.0f + static_cast<float>(round % 128) / 128,
                                  static_cast<int>(rng() % 200) - 100);
    std::vector<float> x(n);
    for (size_t i = 0; i < n; ++i) {
      // All codes at every mantissa of the scale, then whatever comes.
      x[i] = size * (round < 256   ? static_cast<float>(i)
                     : round < 512 ? -static_cast<float>(i) + 0.499f
                                   : normal(rng));
    }
    std::vector<std::byte> wire(TokenBytes(DType::kBfloat16, true, n)), as_is(2 * n), back(2 * n),
        kept(2 * n), again(wire.size());
    const TokenCodec& codec = TokenCodecOf(DType::kBfloat16, true);
    RowCodecOf(DType::kBfloat16).encode(x.data(), n, as_is.data());
    codec.send(x.data(), n, wire.data());
    codec.receive(wire.data(), n, back.data());
    codec.keep(x.data(), n, kept.data());
    ASSERT_EQ(back, kept);
    std::vector<float> scales, wanted_scales;
    const std::vector<int8_t> wanted = Codes(as_is, &wanted_scales);
    ASSERT_EQ(Codes(back, &scales), wanted) << "round " << round;
    ASSERT_EQ(scales, wanted_scales) << "round " << round;
    RowCodecOf(DType::kBfloat16).decode(back.data(), n, x.data());
    codec.send(x.data(), n, again.data());
    ASSERT_EQ(again, wire) << "round " << round;
  }
}

TEST(TokenCodecTest, ZerosDenormalsAndWhatIsNotFinite) {
  const TokenCodec& codec = TokenCodecOf(DType::kBfloat16, true);
  for (const float odd : {0.0f, -0.0f, 1e-40f, INFINITY, -INFINITY, NAN}) {
    std::vector<float> x(3 * kInt8Group, 1.0f);
    for (size_t i = kInt8Group; i < 2 * kInt8Group; ++i) x[i] = 0;
    x[kInt8Group + 7] = odd;
    std::vector<std::byte> row(2 * x.size());
    codec.keep(x.data(), x.size(), row.data());
    RowCodecOf(DType::kBfloat16).decode(row.data(), x.size(), x.data());
    for (size_t i = 0; i < x.size(); ++i) {
      if (i / kInt8Group != 1) {
        EXPECT_EQ(x[i], 1.0f);
      } else if (std::isfinite(odd)) {
        EXPECT_EQ(x[i], 0.0f);
      } else {
        EXPECT_TRUE(std::isnan(x[i]));
      }
    }
  }
}

}  // namespace
}  // namespace switchyard
