#include "cluster/membership.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "cluster/convert.h"
#include "common/clock.h"

namespace switchyard {
namespace {

namespace pb = cluster::v1;

pb::Registration Decode(const std::string& numerics = "n1", const std::string& layout = "l1") {
  pb::Registration r;
  r.set_wire_version(kClusterWireVersion);
  r.set_role(pb::ROLE_DECODE);
  r.set_incarnation(7);
  r.set_numerics_id(numerics);
  r.set_layout_id(layout);
  r.set_max_model_len(128);
  r.set_block_tokens(16);
  r.set_kv_blocks_total(64);
  r.set_vocab_size(1000);
  return r;
}

class MembershipTest : public ::testing::Test {
 protected:
  ManualClock clock_;
  Membership members_{MembershipOptions{.vocab_size = 1000}};
};

TEST_F(MembershipTest, SecondNumericsIsRefusedWithBothValues) {
  ASSERT_TRUE(members_.Register("a:1", pb::ROLE_DECODE, Decode(), clock_.Now()).ok());
  for (const pb::Registration& r : {Decode("n2"), Decode("n1", "l2")}) {
    absl::StatusOr<WorkerId> id = members_.Register("b:1", pb::ROLE_DECODE, r, clock_.Now());
    ASSERT_EQ(id.status().code(), absl::StatusCode::kFailedPrecondition);
    const std::string text(id.status().message());
    EXPECT_NE(text.find("b:1"), std::string::npos) << text;
    EXPECT_NE(text.find(r.numerics_id() == "n2" ? "n2" : "l2"), std::string::npos) << text;
    EXPECT_NE(text.find(r.numerics_id() == "n2" ? "n1" : "l1"), std::string::npos) << text;
  }
  EXPECT_EQ(members_.Alive(pb::ROLE_DECODE), 1);
}

TEST_F(MembershipTest, PinOutlivesTheWorkerThatSetIt) {
  auto id = members_.Register("a:1", pb::ROLE_DECODE, Decode(), clock_.Now());
  ASSERT_TRUE(id.ok());
  members_.Remove(*id);
  EXPECT_FALSE(members_.Register("a:1", pb::ROLE_DECODE, Decode("n2"), clock_.Now()).ok());
  EXPECT_TRUE(members_.Register("a:1", pb::ROLE_DECODE, Decode("n1"), clock_.Now()).ok());
}

TEST_F(MembershipTest, SilentWorkerIsOutAndMustRegisterAnew) {
  auto id = members_.Register("a:1", pb::ROLE_DECODE, Decode(), clock_.Now());
  ASSERT_TRUE(id.ok());
  clock_.Advance(absl::Seconds(2));
  members_.Beat(*id, {}, clock_.Now());
  clock_.Advance(absl::Seconds(3));
  EXPECT_TRUE(members_.Expire(clock_.Now()).empty());
  clock_.Advance(absl::Milliseconds(1));
  auto expired = members_.Expire(clock_.Now());
  ASSERT_EQ(expired.size(), 1u);
  EXPECT_EQ(expired[0].id, *id);
  members_.Beat(*id, {}, clock_.Now());  // late: does not bring it back
  EXPECT_EQ(members_.Find(*id), nullptr);
  auto again = members_.Register("a:1", pb::ROLE_DECODE, Decode(), clock_.Now());
  ASSERT_TRUE(again.ok());
  EXPECT_NE(*again, *id);
}

TEST_F(MembershipTest, BusyEngineWithoutProgressIsStuckAndOthersAreNot) {
  auto busy = members_.Register("a:1", pb::ROLE_DECODE, Decode(), clock_.Now());
  auto idle = members_.Register("b:1", pb::ROLE_DECODE, Decode(), clock_.Now());
  auto slow = members_.Register("c:1", pb::ROLE_DECODE, Decode(), clock_.Now());
  auto starved = members_.Register("d:1", pb::ROLE_DECODE, Decode(), clock_.Now());
  pb::Heartbeat beat;
  beat.set_steps(5);
  for (int i = 0; i < 4; ++i) {
    beat.set_busy(true);
    members_.Beat(*busy, beat, clock_.Now());
    beat.set_progress(i);  // a long step, layer by layer
    members_.Beat(*slow, beat, clock_.Now());
    beat.set_progress(0);
    beat.set_engine_cpu_ms(i);  // no layer yet, but it computes
    members_.Beat(*starved, beat, clock_.Now());
    beat.set_engine_cpu_ms(0);
    beat.set_busy(false);
    members_.Beat(*idle, beat, clock_.Now());
    clock_.Advance(absl::Seconds(1));
  }
  auto expired = members_.Expire(clock_.Now());
  ASSERT_EQ(expired.size(), 1u);
  EXPECT_EQ(expired[0].address, "a:1");

  // The process still lives and registers anew, but nothing is to be given to it until it moves.
  auto again = members_.Register("a:1", pb::ROLE_DECODE, Decode(), clock_.Now());
  EXPECT_TRUE(members_.Find(*again)->suspect);
  beat.set_busy(true);
  members_.Beat(*again, beat, clock_.Now());
  EXPECT_TRUE(members_.Find(*again)->suspect);
  beat.set_progress(1);
  members_.Beat(*again, beat, clock_.Now());
  EXPECT_FALSE(members_.Find(*again)->suspect);

  beat.set_progress(0);
  for (int i = 10; i < 40; ++i) {
    beat.set_engine_cpu_ms(i);
    members_.Beat(*starved, beat, clock_.Now());
    clock_.Advance(absl::Seconds(1));
  }
  expired = members_.Expire(clock_.Now());
  EXPECT_TRUE(std::any_of(expired.begin(), expired.end(), [](const auto& e) {
    return e.address == "d:1";
  })) << "an endless loop uses CPU time too";
}

TEST_F(MembershipTest, NothingIsKeptOfAnAddressThatIsForgotten) {
  pb::Heartbeat busy;
  busy.set_busy(true);
  const auto stand_still = [&] {
    auto id = members_.Register("a:1", pb::ROLE_DECODE, Decode(), clock_.Now());
    clock_.Advance(absl::Seconds(4));
    members_.Beat(*id, busy, clock_.Now());
    EXPECT_EQ(members_.Expire(clock_.Now()).size(), 1u);
  };
  stand_still();
  auto id = members_.Register("a:1", pb::ROLE_DECODE, Decode(), clock_.Now());
  EXPECT_TRUE(members_.Find(*id)->suspect);
  members_.Remove(*id);
  members_.Forget("a:1");
  id = members_.Register("a:1", pb::ROLE_DECODE, Decode(), clock_.Now());
  EXPECT_FALSE(members_.Find(*id)->suspect);
  members_.Remove(*id);

  stand_still();  // two slots may have one address
  id = members_.Register("a:1", pb::ROLE_DECODE, Decode(), clock_.Now());
  members_.Forget("a:1");
  members_.Beat(*id, busy, clock_.Now());
  EXPECT_FALSE(members_.Find(*id)->suspect);
}

TEST_F(MembershipTest, RefusesNonsense) {
  pb::Registration r = Decode();
  EXPECT_FALSE(members_.Register("a:1", pb::ROLE_PREFILL, r, clock_.Now()).ok());
  r.set_block_tokens(0);
  EXPECT_EQ(members_.Register("a:1", pb::ROLE_DECODE, r, clock_.Now()).status().code(),
            absl::StatusCode::kInvalidArgument);
  r = Decode();
  r.set_vocab_size(999);
  EXPECT_FALSE(members_.Register("a:1", pb::ROLE_DECODE, r, clock_.Now()).ok());
  r = Decode();
  r.set_wire_version(99);
  EXPECT_FALSE(members_.Register("a:1", pb::ROLE_DECODE, r, clock_.Now()).ok());
  EXPECT_FALSE(members_.pinned().has_value());
}

TEST_F(MembershipTest, AvailableBlocksIncludeCachedOnes) {
  auto id = members_.Register("a:1", pb::ROLE_DECODE, Decode(), clock_.Now());
  EXPECT_EQ(members_.Find(*id)->kv_blocks_available(), 64);
  pb::Heartbeat beat;
  beat.set_kv_blocks_free(1);
  beat.set_kv_blocks_owned(10);
  beat.set_kv_blocks_leased(5);
  members_.Beat(*id, beat, clock_.Now());
  EXPECT_EQ(members_.Find(*id)->kv_blocks_available(), 49);
  beat.set_kv_blocks_owned(1 << 30);  // a worker may say anything
  beat.set_kv_blocks_leased(1 << 30);
  members_.Beat(*id, beat, clock_.Now());
  EXPECT_EQ(members_.Find(*id)->kv_blocks_available(), 0);
}

}  // namespace
}  // namespace switchyard
