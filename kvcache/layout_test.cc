#include "kvcache/layout.h"

#include <gtest/gtest.h>

#include <cstring>
#include <set>

namespace switchyard {
namespace {

KvLayout Mla() {
  return {.kind = KvLayout::Kind::kMla, .layers = 6, .kv_heads = 1, .k_dim = 80, .v_dim = 64};
}
KvLayout Gqa() {
  return {.kind = KvLayout::Kind::kGqa,
          .layers = 2,
          .kv_heads = 3,
          .k_dim = 8,
          .v_dim = 4,
          .block_tokens = 4,
          .dtype = DType::kFloat32};
}

TEST(KvLayoutTest, IdNamesWhatDecidesTheBytes) {
  EXPECT_EQ(Mla().LayoutId(), "mla:bfloat16:bt16:k80:v64:g1:L6:v1");
  EXPECT_EQ(Gqa().LayoutId(), "gqa:float32:bt4:k8:v4:g3:L2:v1");
}

TEST(KvLayoutTest, MlaKeepsValuesInsideKeys) {
  EXPECT_EQ(Mla().BlockBytes(), 16u * 80 * 2);
  EXPECT_EQ(Mla().BlockBytesAllLayers(), 6u * 16 * 80 * 2);
  const KvAddressing a = Mla().Addressing();
  EXPECT_EQ(a.v_offset, a.k_offset);
  EXPECT_EQ(a.v_token_stride, 80u);
  EXPECT_EQ(a.block_stride, 16u * 80);
}

// Every element of a GQA block has one place of its own, and together they fill the block.
TEST(KvLayoutTest, GqaElementsTileTheBlock) {
  const KvLayout l = Gqa();
  const KvAddressing a = l.Addressing();
  std::set<size_t> seen;
  for (int g = 0; g < l.kv_heads; ++g) {
    for (int t = 0; t < l.block_tokens; ++t) {
      for (int d = 0; d < l.k_dim; ++d)
        seen.insert(a.k_offset + g * a.k_head_stride + t * a.k_token_stride + d);
      for (int d = 0; d < l.v_dim; ++d)
        seen.insert(a.v_offset + g * a.v_head_stride + t * a.v_token_stride + d);
    }
  }
  EXPECT_EQ(seen.size() * 4, l.BlockBytes());
  EXPECT_EQ(*seen.rbegin(), l.BlockBytes() / 4 - 1);
}

TEST(KvLayoutTest, BlocksForRoundsUp) {
  EXPECT_EQ(Mla().BlocksFor(0), 0);
  EXPECT_EQ(Mla().BlocksFor(1), 1);
  EXPECT_EQ(Mla().BlocksFor(16), 1);
  EXPECT_EQ(Mla().BlocksFor(17), 2);
  EXPECT_EQ(Mla().BlocksFor(2147483647), 134217728);  // no overflow on the way
}

TEST(KvStorageTest, BlocksOfLayersDoNotOverlap) {
  KvStorage kv(Gqa(), 3);
  for (int l = 0; l < 2; ++l)
    for (int b = 0; b < 3; ++b)
      std::memset(kv.Block(l, b), 1 + l * 3 + b, kv.layout().BlockBytes());
  for (int l = 0; l < 2; ++l)
    for (int b = 0; b < 3; ++b)
      for (size_t i = 0; i < kv.layout().BlockBytes(); ++i)
        ASSERT_EQ(static_cast<int>(kv.Block(l, b)[i]), 1 + l * 3 + b);
}

TEST(KvStorageTest, UntouchedBlocksAreZeroAndCostNothing) {
  KvLayout l = Mla();
  l.layers = 60;
  auto kv = KvStorage::Create(l, 1 << 18);  // 40 GB of addresses
  ASSERT_TRUE(kv.ok()) << kv.status();
  EXPECT_EQ(static_cast<int>(kv->Block(59, (1 << 18) - 1)[100]), 0);
}

TEST(KvStorageTest, RefusesWhatCannotBe) {
  KvLayout l = Mla();
  l.layers = 1 << 30;
  l.k_dim = 1 << 30;
  EXPECT_EQ(KvStorage::Create(l, 1 << 30).status().code(), absl::StatusCode::kInvalidArgument);
  l = Mla();
  l.layers = 0;
  EXPECT_EQ(KvStorage::Create(l, 1).status().code(), absl::StatusCode::kInvalidArgument);
  l = Mla();
  l.v_dim = 81;
  EXPECT_EQ(KvStorage::Create(l, 1).status().code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace switchyard
