#include "model/head_share.h"

#include <gtest/gtest.h>

namespace switchyard {
namespace {

ModelConfig Gqa(int heads, int kv_heads) {
  ModelConfig c;
  c.heads = heads;
  c.kv_heads = kv_heads;
  return c;
}

ModelConfig Mla(int heads) {
  ModelConfig c = Gqa(heads, heads);
  c.attention = ModelConfig::Attention::kMla;
  return c;
}

TEST(HeadShareTest, OutputGroupsAreThoseOfTheLargestSplit) {
  for (const auto& [heads, groups] :
       {std::pair(128, 8), {32, 8}, {8, 8}, {12, 4}, {4, 4}, {6, 2}, {9, 1}}) {
    EXPECT_EQ(OutputGroups(heads), groups) << heads;
  }
}

// Each query head is on one rank, with the key/value head that it reads, which that rank keeps; the
// first rank keeps all.
TEST(HeadShareTest, EveryHeadIsOnOneRankWithItsKeys) {
  for (const ModelConfig& c : {Gqa(32, 4), Gqa(32, 8), Gqa(8, 2), Gqa(16, 16), Gqa(8, 1)}) {
    for (const int ranks : {1, 2, 4, 8}) {
      ASSERT_TRUE(CheckTensorRanks(c, ranks).ok());
      int next = 0;
      for (int r = 0; r < ranks; ++r) {
        const HeadShare s = HeadsOf(c, r, ranks);
        EXPECT_EQ(s.first_head, next);
        next += s.heads;
        ASSERT_EQ(s.heads % s.kv_heads, 0);
        for (int h = 0; h < s.heads; ++h) {
          const int read = s.first_kv + h / (s.heads / s.kv_heads);
          EXPECT_EQ(read, (s.first_head + h) / (c.heads / c.kv_heads));
          EXPECT_GE(read, s.first_stored);
          EXPECT_LT(read, s.first_stored + s.stored);
        }
      }
      EXPECT_EQ(next, c.heads);
      EXPECT_EQ(HeadsOf(c, 0, ranks).stored, c.kv_heads);
    }
  }
  EXPECT_EQ(HeadsOf(Mla(128), 3, 4).first_head, 96);  // DeepSeek-V3: TP4
  EXPECT_EQ(HeadsOf(Mla(128), 3, 4).stored, 1);
}

TEST(HeadShareTest, WhatCannotBeSplitIsRefusedWithTheNumbers) {
  ModelConfig olmoe = Gqa(16, 16);
  olmoe.qk_norm = ModelConfig::QkNorm::kFullWidth;
  EXPECT_TRUE(CheckTensorRanks(olmoe, 1).ok());
  for (const auto& [config, ranks, what] : {std::tuple(Mla(128), 3, "1, 2, 4 or 8"),
                                            {Mla(128), 16, "16"},
                                            {Mla(128), 0, "0"},
                                            {Mla(4), 8, "4 heads"},
                                            {Gqa(24, 3), 2, "3 key/value heads"},
                                            {olmoe, 2, "16 heads"}}) {
    const absl::Status s = CheckTensorRanks(config, ranks);
    EXPECT_TRUE(absl::IsInvalidArgument(s)) << s;
    EXPECT_NE(s.message().find(what), s.message().npos) << s;
  }
}

}  // namespace
}  // namespace switchyard
