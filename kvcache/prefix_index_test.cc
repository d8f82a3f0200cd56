#include "kvcache/prefix_index.h"

#include <gtest/gtest.h>

namespace switchyard {
namespace {

using Ids = std::vector<TokenId>;

std::vector<PrefixHash> Chain(const PrefixIndex& index, const std::vector<Ids>& blocks,
                              std::string_view salt = "") {
  std::vector<PrefixHash> chain;
  PrefixHash hash = index.Root(salt);
  for (const Ids& block : blocks) chain.push_back(hash = PrefixIndex::Next(hash, block));
  return chain;
}

TEST(PrefixIndexTest, AHashIsOfAllTokensBeforeIt) {
  BlockPool pool(1);
  const PrefixIndex index(&pool, 7);
  const auto chain = Chain(index, {{1, 2}, {3, 4}});
  EXPECT_EQ(Chain(index, {{1, 2}, {3, 4}}), chain);
  EXPECT_NE(Chain(index, {{1, 2}, {3, 5}})[1], chain[1]);
  EXPECT_NE(Chain(index, {{1, 3}, {3, 4}})[1], chain[1]);
  EXPECT_NE(Chain(index, {{3, 4}})[0], chain[1]);
  EXPECT_NE(Chain(index, {{1, 2}}, "tenant")[0], chain[0]);
  BlockPool other_pool(1);
  EXPECT_NE(Chain(PrefixIndex(&other_pool, 8), {{1, 2}})[0], chain[0]);
}

TEST(PrefixIndexTest, FindsLeadingBlocksAndSharesThem) {
  BlockPool pool(4);
  PrefixIndex index(&pool, 0);
  const auto chain = Chain(index, {{1}, {2}, {3}});
  const auto blocks = pool.Allocate(3).value();
  index.Insert(chain[0], blocks[0]);
  index.Insert(chain[2], blocks[2]);
  EXPECT_EQ(index.Find(chain).blocks, 1);  // the second one is missing
  index.Insert(chain[1], blocks[1]);
  EXPECT_EQ(index.Find(chain).blocks, 3);
  EXPECT_EQ(index.Find(chain).cached, 0);
  pool.Release({blocks.data() + 1, 2});
  EXPECT_EQ(index.Find(chain).cached, 2);
  const auto taken = index.Take(std::span(chain).first(2));
  EXPECT_EQ(taken, (std::vector<BlockId>{blocks[0], blocks[1]}));
  EXPECT_EQ(pool.reference_count(blocks[0]), 2);
  EXPECT_EQ(pool.reference_count(blocks[1]), 1);
  pool.CheckInvariants();
}

TEST(PrefixIndexTest, WhatThePoolTakesAwayIsForgotten) {
  BlockPool pool(2);
  PrefixIndex index(&pool, 0);
  const auto chain = Chain(index, {{1}, {2}});
  const auto blocks = pool.Allocate(2).value();
  index.Insert(chain[0], blocks[0]);
  index.Insert(chain[1], blocks[1]);
  pool.Release({blocks.data() + 1, 1});
  pool.Release({blocks.data(), 1});
  const auto other = pool.Allocate(1).value();
  EXPECT_EQ(other[0], blocks[1]);  // unused for longest
  EXPECT_EQ(index.Find(chain).blocks, 1);
  EXPECT_EQ(index.size(), 1u);
  index.Insert(Chain(index, {{9}})[0], other[0]);
  EXPECT_EQ(index.size(), 2u);
}

TEST(PrefixIndexTest, TheFirstBlockOfEqualOnesStays) {
  BlockPool pool(2);
  PrefixIndex index(&pool, 0);
  const auto chain = Chain(index, {{1}});
  const auto blocks = pool.Allocate(2).value();
  index.Insert(chain[0], blocks[0]);
  index.Insert(chain[0], blocks[1]);
  index.Insert(chain[0], blocks[0]);
  EXPECT_EQ(index.Take(chain), (std::vector<BlockId>{blocks[0]}));
  pool.Release({blocks.data() + 1, 1});
  EXPECT_EQ(pool.counts().free, 1);  // nothing in it is worth keeping
}

}  // namespace
}  // namespace switchyard
