// The inner loops that no op shows on its own: exp, rounding, transposition.
#include "kernels/cpu/isa.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "common/bf16.h"
#include "kernels/kernel_set.h"

namespace switchyard::cpu {
namespace {

class IsaTest : public testing::TestWithParam<const Isa*> {
 protected:
  void SetUp() override {
    if (!SelectKernels(isa_.name).ok()) GTEST_SKIP() << "this CPU cannot run " << isa_.name;
  }
  const Isa& isa_ = *GetParam();
};

TEST_P(IsaTest, ExpIsAccurateToTwoUlp) {
  for (float x = -87.0f; x < 88.0f; x += 0.00137f) {
    const double exact = std::exp(static_cast<double>(x));
    const float nearest = static_cast<float>(exact);
    const double ulp = std::nextafter(nearest, INFINITY) - nearest;
    ASSERT_LE(std::abs(isa_.exp(x) - exact), 2 * ulp) << x;
  }
  EXPECT_EQ(isa_.exp(0.0f), 1.0f);
  EXPECT_EQ(isa_.exp(-200.0f), 0.0f);
  EXPECT_EQ(isa_.exp(-INFINITY), 0.0f);
  EXPECT_EQ(isa_.exp(200.0f), INFINITY);
  EXPECT_TRUE(std::isnan(isa_.exp(NAN)));
  EXPECT_NEAR(isa_.exp(-100.0f), std::exp(-100.0), 1.5e-45);
}

// Bit patterns of all kinds: zeros, denormals, ties, the largest, infinities, NaNs.
std::vector<float> Specials() {
  std::vector<float> v;
  for (const uint32_t sign : {0u, 0x80000000u}) {
    for (const uint32_t u : {0u, 1u, 0x7fffu, 0x8000u, 0x8001u, 0x18000u, 0x7fffffu, 0x800000u,
                             0x3f808000u, 0x3f818000u, 0x3f80ffffu, 0x7f7fffffu, 0x7f7f7fffu,
                             0x7f800000u, 0x7f800001u, 0x7fc00000u, 0x7fffffffu}) {
      v.push_back(std::bit_cast<float>(u | sign));
    }
  }
  std::mt19937 rng(3);
  while (v.size() < 1003) v.push_back(std::bit_cast<float>(static_cast<uint32_t>(rng())));
  return v;
}

TEST_P(IsaTest, RoundingIsThatOfToBf16) {
  const std::vector<float> in = Specials();
  std::vector<uint16_t> halves(in.size());
  std::vector<float> rounded(in.size()), widened(in.size());
  isa_.to_bf16(in.data(), in.size(), halves.data());
  isa_.round_to_bf16(in.data(), in.size(), rounded.data());
  isa_.widen(halves.data(), halves.size(), widened.data());
  for (size_t i = 0; i < in.size(); ++i) {
    const uint32_t bits = std::bit_cast<uint32_t>(in[i]);
    EXPECT_EQ(halves[i], ToBf16(in[i]).bits) << std::hex << bits;
    EXPECT_EQ(std::bit_cast<uint32_t>(rounded[i]), uint32_t{halves[i]} << 16) << std::hex << bits;
    EXPECT_EQ(std::bit_cast<uint32_t>(widened[i]), uint32_t{halves[i]} << 16) << std::hex << bits;
  }
}

TEST_P(IsaTest, TransposeMovesEveryUnit) {
  for (const size_t units : {1, 7, 8, 9, 16, 31, 64}) {
    std::vector<uint32_t> in(kSubBlock * units), out(kSubBlock * units);
    std::vector<const unsigned char*> rows;
    for (size_t i = 0; i < in.size(); ++i) in[i] = static_cast<uint32_t>(i);
    for (int r = 0; r < kSubBlock; ++r) {
      rows.push_back(reinterpret_cast<const unsigned char*>(in.data() + r * units));
    }
    for (int r = 0; r < kSubBlock; r += isa_.lanes) {
      isa_.transpose(rows.data() + r, units, out.data() + r);
    }
    for (int r = 0; r < kSubBlock; ++r) {
      for (size_t u = 0; u < units; ++u) ASSERT_EQ(out[u * kSubBlock + r], in[r * units + u]);
    }
  }
}

TEST_P(IsaTest, PairInterleavesTwoRows) {
  for (const size_t n : {1, 7, 16, 33}) {
    std::vector<uint16_t> rows(2 * n + 1);
    for (size_t i = 0; i < rows.size(); ++i) rows[i] = static_cast<uint16_t>(7 * i + 40000);
    std::vector<uint32_t> out(n + 1, 1);
    // The second row is not aligned.
    const auto* bytes = reinterpret_cast<const unsigned char*>(rows.data());
    isa_.pair(bytes, bytes + 2 * (n + 1), n, out.data());
    for (size_t i = 0; i < n; ++i) {
      EXPECT_EQ(out[i], rows[i] | uint32_t{rows[n + 1 + i]} << 16) << i << " of " << n;
    }
    EXPECT_EQ(out[n], 1u);
  }
}

TEST_P(IsaTest, SiluAtItsEnds) {
  const std::vector<float> gate = {0.0f, 100.0f, -100.0f, 1.0f, -1e30f, 1e30f, -INFINITY},
                           up(7, 2.0f);
  std::vector<float> out(7);
  isa_.silu_mul(gate.data(), up.data(), gate.size(), out.data());
  EXPECT_EQ(out[0], 0.0f);
  EXPECT_EQ(out[1], 200.0f);
  EXPECT_NEAR(out[2], 0.0f, 1e-35);
  EXPECT_NEAR(out[3], 2 / (1 + std::exp(-1.0)), 1e-6);
  EXPECT_EQ(out[4], 0.0f);
  EXPECT_EQ(out[5], 2e30f);
}

TEST_P(IsaTest, TilesOfAllHeightsGiveTheBitsOfSingleRows) {
  std::mt19937 rng(3);
  // As floats, BF16 and scales of integers all finite and below 2.
  const auto fill = [&](std::vector<uint32_t>& words) {
    for (uint32_t& w : words) w = static_cast<uint32_t>(rng()) & 0xbfffbfffu;
  };
  const size_t stride = 400, c_stride = 80;  // words
  std::vector<uint32_t> a(kPassRows * stride), b(70 * 64), before(kPassRows * c_stride);
  fill(a);
  fill(b);
  fill(before);
  for (int kind = 0; kind < kTileKinds; ++kind) {
    if (isa_.tile[kind] == nullptr) continue;
    const bool integers = kind >= kTileInt8;
    for (const size_t steps : integers ? std::vector<size_t>{2, 17, 18, 33, 34, 67}
                                       : std::vector<size_t>{0, 1, 31, 32, 33, 65}) {
      for (int rows = 1; rows <= kPassRows; ++rows) {
        for (int vectors = 1; vectors <= isa_.tile_vectors; ++vectors) {
          for (const bool accumulate : {false, true}) {
            std::vector<uint32_t> together = before, alone = before;
            const auto run = [&](std::vector<uint32_t>& c, int first, int count) {
              isa_.tile[kind]({.a = a.data() + first * stride,
                               .a_stride = stride * sizeof(uint32_t),
                               .b = b.data(),
                               .b_stride = 64,
                               .steps = steps,
                               .c = reinterpret_cast<float*>(c.data()) + first * c_stride,
                               .c_stride = c_stride,
                               .rows = count,
                               .vectors = vectors,
                               .accumulate = accumulate,
                               .ahead = count > 1});
            };
            run(together, 0, rows);
            for (int r = 0; r < rows; ++r) run(alone, r, 1);
            ASSERT_EQ(together, alone) << "kind " << kind << ", " << rows << " rows, " << vectors
                                       << " vectors, " << steps << " steps";
          }
        }
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Tables, IsaTest,
                         testing::Values(&kAvx2, &kAvx512, &kAvx512Vnni, &kAvx512Bf16),
                         [](const auto& info) { return std::string(info.param->name); });

}  // namespace
}  // namespace switchyard::cpu
