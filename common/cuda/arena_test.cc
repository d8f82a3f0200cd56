#include <gtest/gtest.h>

#include <cstdint>

#include "common/cuda/device.h"

namespace switchyard::cuda {
namespace {

TEST(DeviceArenaTest, PiecesLieBesideEachOtherAndLargeOnesCostNoSlab) {
  constexpr size_t kSlab = 64 << 10;
  DeviceArena arena(kSlab);
  EXPECT_EQ(arena.held_bytes(), 0u);
  std::byte* const first = *arena.Allocate(100);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(first) % 256, 0u);
  // A layer's weights: small ones, then experts.
  for (int layer = 0; layer < 20; ++layer) {
    ASSERT_TRUE(arena.Allocate(3 * kSlab).ok());
    EXPECT_EQ(*arena.Allocate(1000), first + 256 + layer * 1024);
  }
  EXPECT_EQ(arena.held_bytes(), kSlab + 20 * 3 * kSlab);
  // A slab that lacks the room is followed by another; at most a quarter of it is lost.
  for (int i = 0; i < 8; ++i) ASSERT_TRUE(arena.Allocate(kSlab / 4).ok());
  EXPECT_EQ(arena.held_bytes(), 3 * kSlab + 20 * 3 * kSlab);
  std::byte* const last = *arena.Allocate(1);
  EXPECT_EQ(*arena.Allocate(0), last + 256);
}

}  // namespace
}  // namespace switchyard::cuda
