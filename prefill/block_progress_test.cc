#include "prefill/block_progress.h"

#include <algorithm>
#include <random>

#include "gtest/gtest.h"

namespace switchyard {
namespace {

TEST(BlockProgressTest, EveryBlockOfEveryLayerCompletesOnceHoweverThePromptIsCut) {
  for (uint64_t seed = 1; seed <= 200; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937_64 rng(seed);
    const int layers = 1 + rng() % 3, tokens = 1 + rng() % 100, block_tokens = 1 + rng() % 17;
    BlockProgress progress(layers, tokens, block_tokens);
    std::vector<int> next(layers, 0);
    for (int at = 0; at < tokens;) {
      const int n = std::min<int>(tokens - at, 1 + rng() % 40);
      for (int layer = 0; layer < layers; ++layer) {
        for (int repeat = 0; repeat < 2; ++repeat) {  // a step that runs twice changes nothing
          const auto range = progress.Add(layer, at, n);
          ASSERT_TRUE(range.ok()) << range.status();
          EXPECT_TRUE(repeat == 0 || range->blocks == 0);
          EXPECT_EQ(range->first_block, next[layer]);
          next[layer] += range->blocks;
          const int rows = std::min(tokens, next[layer] * block_tokens);
          EXPECT_LE(rows, at + n) << "a block went before its rows were written";
        }
      }
      at += n;
    }
    for (const int n : next) EXPECT_EQ(n, progress.blocks_total());
  }
}

TEST(BlockProgressTest, GapsAndRowsPastTheEndAreRefused) {
  BlockProgress progress(/*layers=*/1, /*tokens=*/20, /*block_tokens=*/16);
  EXPECT_EQ(progress.Add(0, 1, 4).status().code(), absl::StatusCode::kInternal);
  EXPECT_EQ(progress.Add(0, 0, 21).status().code(), absl::StatusCode::kInternal);
  EXPECT_EQ(progress.tail_rows(), 4);
}

TEST(ZeroTailTest, ClearsUnusedRowsOfEveryHeadAndNothingElse) {
  for (const auto kind : {KvLayout::Kind::kGqa, KvLayout::Kind::kMla}) {
    KvLayout layout;
    layout.kind = kind;
    layout.layers = 2;
    layout.kv_heads = kind == KvLayout::Kind::kGqa ? 3 : 1;
    layout.k_dim = 5;
    layout.v_dim = kind == KvLayout::Kind::kGqa ? 7 : 3;
    layout.block_tokens = 4;
    layout.dtype = DType::kFloat32;
    KvStorage kv(layout, 3);
    const size_t floats = layout.BlockBytes() / 4;
    for (int l = 0; l < 2; ++l) {
      for (int b = 0; b < 3; ++b) {
        std::fill_n(reinterpret_cast<float*>(kv.Block(l, b)), floats, 1.0f);
      }
    }
    ZeroTail(kv, /*layer=*/1, BlockId(1), /*used_rows=*/3);
    const float* p = reinterpret_cast<const float*>(kv.Block(1, 1));
    const int row = kind == KvLayout::Kind::kGqa ? 3 * (5 + 7) : 5;
    EXPECT_EQ(std::count(p, p + floats, 0.0f), row);
    const KvAddressing a = layout.Addressing();
    for (int g = 0; g < layout.kv_heads; ++g) {
      EXPECT_EQ(p[a.k_offset + g * a.k_head_stride + 3 * a.k_token_stride], 0.0f);
      EXPECT_EQ(p[a.v_offset + g * a.v_head_stride + 3 * a.v_token_stride], 0.0f);
      EXPECT_EQ(p[a.v_offset + g * a.v_head_stride + 2 * a.v_token_stride], 1.0f);
    }
    for (const auto& [l, b] : {std::pair{0, 1}, {1, 0}, {1, 2}}) {
      const float* q = reinterpret_cast<const float*>(kv.Block(l, b));
      EXPECT_EQ(std::count(q, q + floats, 1.0f), static_cast<long>(floats));
    }
  }
}

}  // namespace
}  // namespace switchyard
