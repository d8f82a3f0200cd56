#include "cluster/discovery.h"

#include <gtest/gtest.h>

namespace switchyard {
namespace {

using Addresses = std::vector<std::string>;

TEST(DiscoveryTest, NamesAreAskedEachTimeAndAddressesStay) {
  absl::StatusOr<Addresses> answer = Addresses{"10.0.0.2", "10.0.0.1", "[fd00::1]", "10.0.0.2"};
  auto d = Discovery::Create({"a:1", "dns:decode.svc:7000"}, [&](const std::string& name) {
    EXPECT_EQ(name, "decode.svc");
    return answer;
  });
  ASSERT_TRUE(d.ok()) << d.status();
  EXPECT_TRUE(d->changes());
  EXPECT_EQ(d->Resolve(), (Addresses{"a:1", "10.0.0.1:7000", "10.0.0.2:7000", "[fd00::1]:7000"}));
  answer = absl::UnavailableError("the server does not answer");
  EXPECT_EQ(d->Resolve().size(), 4u) << "not knowing is not the same as none";
  answer = absl::NotFoundError("no ready pod");
  EXPECT_EQ(d->Resolve(), Addresses{"a:1"});
}

TEST(DiscoveryTest, FixedAddressesNeedNoLookup) {
  auto d = Discovery::Create({"a:1", "[::1]:2"}, nullptr);
  ASSERT_TRUE(d.ok());
  EXPECT_FALSE(d->changes());
  EXPECT_EQ(d->Resolve(), (Addresses{"a:1", "[::1]:2"}));
}

TEST(DiscoveryTest, EntriesThatMakeNoSenseAreRefused) {
  for (const char* entry : {"a", "dns:a", "dns:a:0", "a:0", "dns:a:70000", ""}) {
    EXPECT_EQ(Discovery::Create({entry}).status().code(), absl::StatusCode::kInvalidArgument)
        << entry;
  }
  EXPECT_FALSE(Discovery::Create({"a:1", "a:1"}).ok());
}

TEST(DiscoveryTest, SystemKnowsLocalhostAndNoNameThatIsTooLong) {
  const auto here = Discovery::SystemLookup("localhost");
  ASSERT_TRUE(here.ok()) << here.status();
  EXPECT_FALSE(here->empty());
  // No name server need be asked, none may answer.
  EXPECT_FALSE(Discovery::SystemLookup(std::string(64, 'x') + ".invalid").ok());
}

}  // namespace
}  // namespace switchyard
