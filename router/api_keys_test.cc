#include "router/api_keys.h"

#include <gtest/gtest.h>

namespace switchyard {
namespace {

TEST(ApiKeysTest, OnlyAWholeKeyIsAllowed) {
  const ApiKeys keys({"secret", "other"});
  for (const char* good : {"Bearer secret", "bearer other", "BEARER secret"}) {
    EXPECT_TRUE(keys.Allows(good)) << good;
  }
  for (const char* bad :
       {"", "secret", "Bearer", "Bearer ", "Bearer secre", "Bearer secrets", "Bearer secretsecret",
        "Bearer  secret", "Basic secret", "Bearer SECRET"}) {
    EXPECT_FALSE(keys.Allows(bad)) << bad;
  }
}

TEST(ApiKeysTest, WithoutKeysEverybodyIsAllowed) {
  EXPECT_TRUE(ApiKeys({}).Allows(""));
  EXPECT_TRUE(ApiKeys({}).Allows("Bearer x"));
}

TEST(ApiKeysTest, AdminsMayDoAllAndOthersNothingOfTheirs) {
  const ApiKeys both({"client"}, {"admin"});
  EXPECT_TRUE(both.Allows("Bearer client"));
  EXPECT_TRUE(both.Allows("Bearer admin"));
  EXPECT_FALSE(both.AllowsAdmin("Bearer client"));
  EXPECT_TRUE(both.AllowsAdmin("Bearer admin"));
  EXPECT_FALSE(both.AllowsAdmin(""));
  const ApiKeys admins_only({}, {"admin"});
  EXPECT_TRUE(admins_only.Allows(""));
  EXPECT_FALSE(admins_only.AllowsAdmin(""));
  EXPECT_TRUE(ApiKeys({"client"}).AllowsAdmin("Bearer client"));
  EXPECT_TRUE(ApiKeys({}).AllowsAdmin(""));
}

TEST(ApiKeysTest, OnlyLoopbackIsThisMachine) {
  for (const char* here : {"ipv4:127.0.0.1:4711", "ipv6:[::1]:4711", "ipv6:%5B::1%5D:4711"}) {
    EXPECT_TRUE(IsOfThisMachine(here)) << here;
  }
  for (const char* away :
       {"", "ipv4:10.0.0.127:1", "ipv6:%5Bfe80::1%5D:1", "ipv6:[::1:2]:1", "127.0.0.1:1"}) {
    EXPECT_FALSE(IsOfThisMachine(away)) << away;
  }
}

}  // namespace
}  // namespace switchyard
