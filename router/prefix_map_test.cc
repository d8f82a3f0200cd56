#include "router/prefix_map.h"

#include <gtest/gtest.h>

#include <numeric>

namespace switchyard {
namespace {

std::vector<TokenId> Tokens(int n, TokenId first = 0) {
  std::vector<TokenId> ids(static_cast<size_t>(n));
  std::iota(ids.begin(), ids.end(), first);
  return ids;
}

TEST(PrefixMapTest, ChainsAreOfFullBlocksAndOfTheSalt) {
  const auto chain = PrefixMap::ChainOf("", Tokens(40), 16);
  EXPECT_EQ(chain.size(), 2u);
  EXPECT_EQ(PrefixMap::ChainOf("", Tokens(31), 16).size(), 1u);
  EXPECT_EQ(PrefixMap::ChainOf("", Tokens(31), 16)[0], chain[0]);
  EXPECT_NE(PrefixMap::ChainOf("tenant", Tokens(40), 16)[0], chain[0]);
  std::vector<TokenId> other = Tokens(40);
  other[0] = 99;
  EXPECT_NE(PrefixMap::ChainOf("", other, 16)[1], chain[1]);  // the second block is equal
  EXPECT_EQ(PrefixMap::ChainOf("", Tokens(1 << 16), 16).size(), 2048u);
}

TEST(PrefixMapTest, FindsTheLongestPrefixOfEachWorker) {
  PrefixMap map(1000);
  const WorkerId a{1}, b{2};
  const auto chain = PrefixMap::ChainOf("", Tokens(64), 16);
  map.Add(chain, a);
  map.Add(PrefixMap::ChainOf("", Tokens(32), 16), b);
  EXPECT_EQ(map.Find(chain), (std::map<WorkerId, int>{{a, 4}, {b, 2}}));
  std::vector<TokenId> half = Tokens(32);
  half.resize(64, 7);
  EXPECT_EQ(map.Find(PrefixMap::ChainOf("", half, 16)), (std::map<WorkerId, int>{{a, 2}, {b, 2}}));
  EXPECT_TRUE(map.Find(PrefixMap::ChainOf("x", Tokens(64), 16)).empty());
}

TEST(PrefixMapTest, IsBoundedAndForgetsTheEndsOfOldPromptsFirst) {
  PrefixMap map(6);
  const auto old = PrefixMap::ChainOf("", Tokens(64), 16);
  map.Add(old, WorkerId{1});
  map.Add(PrefixMap::ChainOf("", Tokens(64, 1000), 16), WorkerId{1});
  EXPECT_EQ(map.size(), 6u);
  EXPECT_EQ(map.Find(old).at(WorkerId{1}), 2);
  for (uint64_t i = 2; i < 12; ++i) map.Add(old, WorkerId{i});
  EXPECT_LE(map.Find(old).size(), 4u);
}

}  // namespace
}  // namespace switchyard
