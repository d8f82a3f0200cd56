#include "kvcache/block_pool.h"

#include <gtest/gtest.h>

#include <map>
#include <random>
#include <set>

namespace switchyard {
namespace {

TEST(BlockPoolTest, RefusesMoreThanIsFreeAndChangesNothing) {
  BlockPool pool(4);
  auto a = pool.Allocate(3);
  ASSERT_TRUE(a.ok());
  const auto refused = pool.Allocate(2);
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(refused.status().message(), "2 KV blocks wanted, 1 of 4 are free");
  EXPECT_EQ(pool.counts().free, 1);
  EXPECT_TRUE(pool.Allocate(0).ok());
  pool.CheckInvariants();
}

TEST(BlockPoolTest, FreeingSharedBlockKeepsIt) {
  BlockPool pool(1);
  const auto b = pool.Allocate(1).value();
  pool.AddReference(b[0]);
  pool.Release(b);
  EXPECT_EQ(pool.counts().owned, 1);
  pool.Release(b);
  EXPECT_EQ(pool.counts().free, 1);
}

TEST(BlockPoolTest, GenerationChangesWheneverABlockLeavesFree) {
  BlockPool pool(1);
  for (uint32_t g = 1; g < 5; ++g) {
    const auto b = g % 2 ? pool.Allocate(1).value() : pool.Lease(1).value();
    EXPECT_EQ(pool.generation(b[0]), g);
    pool.Release(b);
    EXPECT_EQ(pool.generation(b[0]), g);
  }
}

TEST(BlockPoolTest, QuarantinedBlocksAreNotGivenOut) {
  BlockPool pool(2);
  const auto b = pool.Lease(2).value();
  pool.Quarantine(b);
  EXPECT_FALSE(pool.Allocate(1).ok());
  pool.Unquarantine(b);
  EXPECT_TRUE(pool.Allocate(2).ok());
}

TEST(BlockPoolDeathTest, CatchesADoubleFree) {
  BlockPool pool(1);
  const auto b = pool.Allocate(1).value();
  pool.Release(b);
  EXPECT_DEATH(pool.Release(b), "block 0");
  EXPECT_DEATH(pool.Release(std::vector<BlockId>{BlockId(7)}), "block 7 of 1");
}

TEST(BlockPoolTest, KeptBlocksStayUntilOthersAreWanted) {
  BlockPool pool(3);
  std::vector<BlockId> evicted;
  pool.OnEvict([&](BlockId b) { evicted.push_back(b); });
  const auto a = pool.Allocate(2).value();
  for (const BlockId b : a) pool.Keep(b);
  pool.Release(a);
  EXPECT_EQ(pool.counts(), (BlockPool::Counts{.free = 1, .cached = 2, .total = 3}));
  EXPECT_EQ(pool.counts().available(), 3);
  pool.AddReference(a[0]);  // used again: the other one is older now
  pool.Release({a.data(), 1});
  const auto c = pool.Lease(2).value();
  EXPECT_EQ(evicted, (std::vector<BlockId>{a[1]}));
  EXPECT_EQ(pool.reference_count(a[0]), 0);
  pool.AddReference(a[0]);
  EXPECT_FALSE(pool.Allocate(1).ok());  // what somebody uses is never taken
  pool.Release({a.data(), 1});
  EXPECT_TRUE(pool.Allocate(1).ok());
  EXPECT_EQ(evicted, (std::vector<BlockId>{a[1], a[0]}));
  pool.CheckInvariants();
}

// Random operations against a plain model: who holds what. No block is ever held twice, and the
// counts always add up.
TEST(BlockPoolTest, RandomOperationsKeepTheInvariant) {
  const uint32_t seed = GTEST_FLAG_GET(random_seed);
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937 rng(seed);
  BlockPool pool(37);
  std::vector<std::vector<BlockId>> owned, leased, quarantined;
  const auto pick = [&](std::vector<std::vector<BlockId>>& from) {
    std::swap(from[rng() % from.size()], from.back());
    std::vector<BlockId> blocks = std::move(from.back());
    from.pop_back();
    return blocks;
  };
  for (int step = 0; step < 5000; ++step) {
    const int n = static_cast<int>(rng() % 8);
    const bool fits = n <= pool.counts().available();
    switch (rng() % 7) {
      case 0: {
        auto b = pool.Allocate(n);
        ASSERT_EQ(b.ok(), fits);
        if (b.ok()) owned.push_back(*b);
        for (const BlockId kept : b.ok() && rng() % 2 ? *b : std::vector<BlockId>())
          pool.Keep(kept);
        break;
      }
      case 1: {
        auto b = pool.Lease(n);
        ASSERT_EQ(b.ok(), fits);
        if (b.ok()) leased.push_back(*b);
        break;
      }
      case 2:
        if (!leased.empty()) {
          owned.push_back(pick(leased));
          pool.Adopt(owned.back());
        }
        break;
      case 3:
        if (!leased.empty()) {
          quarantined.push_back(pick(leased));
          pool.Quarantine(quarantined.back());
        }
        break;
      case 4:
        if (!quarantined.empty()) pool.Unquarantine(pick(quarantined));
        break;
      case 5:
        if (!leased.empty()) pool.Release(pick(leased));
        break;
      case 6:
        if (!owned.empty()) {  // sometimes shared: held by two
          if (rng() % 3 == 0) {
            owned.push_back(owned[rng() % owned.size()]);
            for (BlockId b : owned.back()) pool.AddReference(b);
          } else {
            pool.Release(pick(owned));
          }
        }
        break;
    }
    std::map<BlockId, int> references;
    std::set<BlockId> all;
    size_t exclusive = 0;
    for (const auto& v : owned)
      for (BlockId b : v) ++references[b], all.insert(b);
    exclusive = all.size();
    for (const auto* group : {&leased, &quarantined})
      for (const auto& v : *group)
        for (BlockId b : v) all.insert(b), ++exclusive;
    ASSERT_EQ(all.size(), exclusive);
    for (const auto& [b, count] : references) ASSERT_EQ(pool.reference_count(b), count);
    ASSERT_EQ(pool.counts().available(), 37 - static_cast<int>(all.size()));
    pool.CheckInvariants();
  }
}

}  // namespace
}  // namespace switchyard
