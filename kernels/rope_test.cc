#include "kernels/rope.h"

#include <gtest/gtest.h>

#include <vector>

namespace switchyard {
namespace {

// Position 1 rotates pair 0 by a quarter turn, and pair 1 by (0.6, 0.8).
RopeTable Table() {
  return {.dim = 4, .positions = 2, .cos = {1, 1, 0, 0.6f}, .sin = {0, 0, 1, 0.8f}};
}

TEST(RopeTest, HalfSplitPairsDistantElements) {
  std::vector<float> x = {1, 5, 2, 10, 99};
  const std::vector<int32_t> positions = {1};
  ApplyRope(Table(), RopeStyle::kHalfSplit, positions, 1, 5, Matrix<float>(x.data(), {1, 5}));
  // (1, 2) -> (−2, 1); (5, 10) -> (3 − 8, 6 + 4)
  EXPECT_FLOAT_EQ(x[0], -2);
  EXPECT_FLOAT_EQ(x[2], 1);
  EXPECT_FLOAT_EQ(x[1], -5);
  EXPECT_FLOAT_EQ(x[3], 10);
  EXPECT_EQ(x[4], 99);
}

TEST(RopeTest, InterleavedPairsNeighbours) {
  std::vector<float> x = {1, 2, 5, 10};
  const std::vector<int32_t> positions = {1};
  ApplyRope(Table(), RopeStyle::kInterleaved, positions, 1, 4, Matrix<float>(x.data(), {1, 4}));
  EXPECT_FLOAT_EQ(x[0], -2);
  EXPECT_FLOAT_EQ(x[1], 1);
  EXPECT_FLOAT_EQ(x[2], -5);
  EXPECT_FLOAT_EQ(x[3], 10);
}

TEST(RopeTest, EveryHeadOfEveryRowTurnsByItsPosition) {
  // Two rows of two heads of 6 elements, the first 4 rotated; the row has 3 more at its end.
  std::vector<float> x(2 * 15, 1.0f);
  const std::vector<int32_t> positions = {0, 1};
  ApplyRope(Table(), RopeStyle::kHalfSplit, positions, 2, 6, Matrix<float>(x.data(), {2, 12}, 15));
  for (int i = 0; i < 15; ++i) EXPECT_EQ(x[i], 1.0f) << i;  // position 0
  for (int head = 0; head < 2; ++head) {
    const float* v = x.data() + 15 + 6 * head;
    EXPECT_FLOAT_EQ(v[0], -1);
    EXPECT_FLOAT_EQ(v[2], 1);
    EXPECT_FLOAT_EQ(v[1], 0.6f - 0.8f);
    EXPECT_FLOAT_EQ(v[3], 1.4f);
    EXPECT_EQ(v[4], 1);
    EXPECT_EQ(v[5], 1);
  }
  for (int i = 27; i < 30; ++i) EXPECT_EQ(x[i], 1.0f) << i;
}

}  // namespace
}  // namespace switchyard
