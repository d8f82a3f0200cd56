#include "decode/peer_lanes.h"

#include <gtest/gtest.h>

namespace switchyard {
namespace {

TEST(PeerLanesTest, WhoWasUsedLeastRecentlyGoesFirst) {
  PeerLanes lanes(3);
  lanes.Add(30, "shm");
  lanes.Add(10, "tcp");
  lanes.Add(20, "tcp");
  lanes.Add(10, "tcp");  // a repeat takes no room
  EXPECT_EQ(lanes.Find(30), "shm");
  lanes.Add(5, "tcp");
  EXPECT_EQ(lanes.Find(20), "unknown");
  EXPECT_EQ(lanes.Find(10), "tcp") << "the smallest token is no older than others";
  EXPECT_EQ(lanes.Find(30), "shm");
  for (uint64_t token = 100; token < 200; ++token) {
    lanes.Add(token, "tcp");
    EXPECT_EQ(lanes.Find(30), "shm") << "it is in use";
  }
  EXPECT_EQ(lanes.Find(10), "unknown");
}

}  // namespace
}  // namespace switchyard
