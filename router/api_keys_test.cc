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

}  // namespace
}  // namespace switchyard
