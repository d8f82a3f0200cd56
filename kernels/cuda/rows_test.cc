// The kernels between the matrix products, against the host's. Outputs start as NaN; every result
// must be the same for every order of threads and whatever the company of a row.
#include "kernels/cuda/rows.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>

#include "kernels/cuda/gate.h"
#include "kernels/cuda/quant.h"
#include "kernels/cuda/sample.h"
#include "kernels/cuda/testing.h"
#include "kernels/kernel_set.h"
#include "kernels/rope.h"
#include "kernels/sample.h"

namespace switchyard::cuda {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

class RowsTest : public testing::Test {
 protected:
  void SetUp() override {
    if (const std::string why = NoDevice(); !why.empty()) GTEST_SKIP() << "skipped: " << why;
  }
  std::vector<float> Normal(size_t n, float scale = 1.0f) {
    std::normal_distribution<float> normal(0, scale);
    std::vector<float> v(n);
    for (float& f : v) f = normal(rng_);
    return v;
  }
  // run(output) with every order of threads; all must give the same, which is returned.
  template <typename T, typename F>
  std::vector<T> Run(size_t n, T poison, F run) {
    std::vector<T> first;
    for (const uint64_t seed : TestedOrders()) {
      SetTestedOrder(seed);
      DeviceArray<T> out(n, poison);
      const absl::Status status = run(out.data());
      EXPECT_TRUE(status.ok()) << status;
      std::vector<T> got = out.Get();
      if (first.empty()) first = got;
      EXPECT_EQ(std::memcmp(first.data(), got.data(), n * sizeof(T)), 0) << "order " << seed;
    }
    SetTestedOrder(0);
    return first;
  }
  std::mt19937_64 rng_{7};
  KernelContext ctx_{1};
};

std::vector<Bf16> Halves(const std::vector<float>& v) {
  std::vector<Bf16> h;
  for (const float f : v) h.push_back(ToBf16(f));
  return h;
}

TEST_F(RowsTest, NormIsTheReferencesAndPadsItsHalves) {
  const KernelSet reference = *SelectKernels("reference");
  for (const int cols : {1, 7, 33, 256, 1001}) {
    const int rows = 3, stride = static_cast<int>(PaddedCols(cols)) + 8;
    const std::vector<float> x = Normal(static_cast<size_t>(rows) * cols, 3.0f),
                             weight = Normal(cols);
    const DeviceArray<float> dx(x), dw(weight);
    const DeviceMatrix<const float> in(dx.data(), rows, cols);
    std::vector<float> expected(x.size());
    reference.norm->RmsNorm(ctx_, {x.data(), {3u, static_cast<size_t>(cols)}}, weight, 1e-6f,
                            {expected.data(), {3u, static_cast<size_t>(cols)}});
    const auto got = Run<float>(x.size(), kNan, [&](float* out) {
      return RmsNorm(nullptr, in, dw.data(), 1e-6f, DeviceMatrix<float>(out, rows, cols));
    });
    for (size_t i = 0; i < got.size(); ++i) {
      EXPECT_NEAR(got[i], expected[i], 2e-6f * (1 + std::abs(expected[i]))) << cols << " " << i;
    }
    const auto halves = Run<Bf16>(static_cast<size_t>(rows) * stride, Bf16{0xffff}, [&](Bf16* out) {
      return RmsNorm(nullptr, in, dw.data(), 1e-6f, DeviceMatrix<Bf16>(out, rows, cols, stride));
    });
    for (int r = 0; r < rows; ++r) {
      for (int i = 0; i < stride; ++i) {
        const Bf16 wanted = i < cols               ? ToBf16(got[r * cols + i])
                            : i < PaddedCols(cols) ? Bf16{0}
                                                   : Bf16{0xffff};
        EXPECT_EQ(halves[r * stride + i].bits, wanted.bits) << r << " " << i;
      }
    }
    // Alone, the last row has the same bits.
    const auto alone = Run<float>(cols, kNan, [&](float* out) {
      return RmsNorm(nullptr, {dx.data() + 2 * cols, 1, cols}, dw.data(), 1e-6f,
                     DeviceMatrix<float>(out, 1, cols));
    });
    EXPECT_EQ(std::memcmp(alone.data(), &got[2 * cols], cols * sizeof(float)), 0);
  }
}

TEST_F(RowsTest, RopeIsTheHostsToTheBit) {
  const int rows = 5, heads = 3, dim = 10, stride = 40, positions = 9;
  RopeTable table{.dim = dim,
                  .positions = positions,
                  .cos = Normal(positions * dim / 2),
                  .sin = Normal(positions * dim / 2)};
  const DeviceArray<float> cos(table.cos), sin(table.sin);
  const std::vector<int32_t> at = {8, 0, 3, 3, 1};
  const DeviceArray<int32_t> where(at);
  const std::vector<float> x = Normal(rows * stride);
  for (const bool interleaved : {false, true}) {
    std::vector<float> expected = x;
    switchyard::ApplyRope(table, interleaved ? RopeStyle::kInterleaved : RopeStyle::kHalfSplit, at,
                          heads, 12, {expected.data(), {rows, 36}, stride});
    const auto got = Run<float>(x.size(), 0.0f, [&](float* out) {
      CopyToDevice(out, x.data(), x.size() * sizeof(float));
      return ApplyRope(nullptr, {cos.data(), sin.data(), dim, positions, interleaved}, where.data(),
                       heads, 12, {out, rows, 36, stride});
    });
    EXPECT_EQ(got, expected);
  }
}

TEST_F(RowsTest, GatherAddCombineAndSilu) {
  const int cols = 21, rows = 6;
  const std::vector<float> x = Normal(rows * cols);
  const DeviceArray<float> dx(x);
  const DeviceArray<Bf16> dh(Halves(x));
  const DeviceArray<int32_t> index({5, -1, 0, 6});
  const auto gathered = Run<float>(4 * cols, kNan, [&](float* out) {
    return GatherRows(nullptr, DeviceMatrix<Bf16>(dh.data(), rows, cols), index.data(),
                      DeviceMatrix<float>(out, 4, cols));
  });
  for (int i = 0; i < cols; ++i) {
    EXPECT_EQ(gathered[i], RoundToBf16(x[5 * cols + i]));
    EXPECT_EQ(gathered[cols + i], 0);
    EXPECT_EQ(gathered[2 * cols + i], RoundToBf16(x[i]));
    EXPECT_EQ(gathered[3 * cols + i], 0);
  }
  const DeviceArray<int32_t> where({1, 4, 2, -1, 0, 5});
  const std::vector<float> w = {0.5f, -2, 3, kNan, 1, 0.25f};
  const DeviceArray<float> weights(w);
  const auto combined = Run<float>(2 * cols, 1.0f, [&](float* out) {
    return CombineSlots(nullptr, DeviceMatrix<float>(dx.data(), rows, cols), where.data(),
                        weights.data(), 3, true, {out, 2, cols});
  });
  for (int i = 0; i < cols; ++i) {
    const float first = 0.0f + w[0] * x[cols + i] + w[1] * x[4 * cols + i] + w[2] * x[2 * cols + i];
    EXPECT_EQ(combined[i], 1.0f + first);
    EXPECT_EQ(combined[cols + i], 1.0f + (0.0f + w[4] * x[i] + w[5] * x[5 * cols + i]));
  }
  const auto added = Run<float>(x.size(), 2.0f, [&](float* out) {
    return AddRows(nullptr, DeviceMatrix<Bf16>(dh.data(), rows, cols), {out, rows, cols});
  });
  for (size_t i = 0; i < x.size(); ++i) EXPECT_EQ(added[i], 2.0f + RoundToBf16(x[i]));
  const auto silu = Run<float>(3 * cols, kNan, [&](float* out) {
    return SiluMul(nullptr, {dx.data(), 3, 2 * cols}, DeviceMatrix<float>(out, 3, cols));
  });
  for (int i = 0; i < 3 * cols; ++i) {
    const float gate = x[i / cols * 2 * cols + i % cols],
                up = x[i / cols * 2 * cols + cols + i % cols];
    EXPECT_NEAR(silu[i], gate / (1 + std::exp(-gate)) * up, 1e-5f);
  }
}

TEST_F(RowsTest, IntegersAreTheHostsToTheBit) {
  const int rows = 3, cols = 300, groups = QuantGroups(cols);
  std::vector<float> x = Normal(rows * cols);
  for (int i = 0; i < 128; ++i) x[i] *= 1e-38f, x[cols + i] = 0.0f;
  x[2 * cols + 200] = INFINITY;
  const DeviceArray<float> dx(x);
  DeviceArray<float> scales(rows * groups, kNan);
  const auto got = Run<uint8_t>(rows * groups * 128, 0xee, [&](uint8_t* out) {
    return QuantizeInt8(nullptr, DeviceMatrix<float>(dx.data(), rows, cols),
                        {out, scales.data(), rows, cols});
  });
  const std::vector<float> s = scales.Get();
  for (int g = 0; g < rows * groups; ++g) {
    const int first = g % groups * 128, n = std::min(128, cols - first);
    int8_t expected[128] = {};
    const float scale = switchyard::QuantizeInt8(&x[g / groups * cols + first], n, expected);
    EXPECT_EQ(std::memcmp(&scale, &s[g], 4), 0) << g << " " << scale << " " << s[g];
    EXPECT_EQ(std::memcmp(expected, &got[g * 128], 128), 0) << g;
  }
}

// E4M3 the slow way.
float Value(uint8_t v) {
  const int exponent = v >> 3 & 15, mantissa = v & 7;
  const float magnitude = exponent == 0
                              ? std::ldexp(static_cast<float>(mantissa), -9)
                              : std::ldexp(8.0f + static_cast<float>(mantissa), exponent - 10);
  return v & 0x80 ? -magnitude : magnitude;
}

TEST_F(RowsTest, Fp8IsTheNearest) {
  const int rows = 2, cols = 260, groups = QuantGroups(cols);
  std::vector<float> x = Normal(rows * cols, 0.02f);
  for (int i = 0; i < 128; ++i) x[i] *= std::exp(static_cast<float>(-i) / 8);
  x[cols + 3] = kNan;
  const DeviceArray<float> dx(x);
  DeviceArray<float> scales(rows * groups, kNan);
  const auto got = Run<uint8_t>(rows * groups * 128, 0xee, [&](uint8_t* out) {
    return QuantizeFp8(nullptr, DeviceMatrix<float>(dx.data(), rows, cols),
                       {out, scales.data(), rows, cols});
  });
  const std::vector<float> s = scales.Get();
  for (int r = 0; r < rows; ++r) {
    for (int i = 0; i < groups * 128; ++i) {
      const uint8_t v = got[r * groups * 128 + i];
      const float scale = s[r * groups + i / 128];
      if (r == 1 && i < 128) {
        EXPECT_TRUE(std::isnan(scale));
        EXPECT_EQ(v, 0);
        continue;
      }
      ASSERT_NE(v & 0x7f, 0x7f);
      const float wanted = i < cols ? x[r * cols + i] / scale : 0.0f;
      const float distance = std::abs(Value(v) - wanted);
      for (int other = 0; other < 256; ++other) {
        if ((other & 0x7f) == 0x7f) continue;
        ASSERT_LE(distance, std::abs(Value(other) - wanted));
      }
    }
  }
}

TEST_F(RowsTest, GateChoosesAsTheHost) {
  const GateConfig configs[] = {
      {.experts = 8, .top_k = 2, .normalize = true},
      {.experts = 60, .top_k = 4},
      {.scoring = GateScoring::kSigmoid,
       .experts = 256,
       .top_k = 8,
       .groups = 8,
       .groups_chosen = 4,
       .group_score_top2 = true,
       .normalize = true,
       .scale = 2.5f},
      {.experts = 160, .top_k = 6, .groups = 8, .groups_chosen = 3, .scale = 16.0f},
      {.experts = 1, .top_k = 1}};
  const int rows = 9;
  for (const GateConfig& c : configs) {
    std::vector<float> logits = Normal(static_cast<size_t>(rows) * c.experts),
                       bias = Normal(c.experts, 0.1f);
    std::fill_n(logits.begin(), c.experts, 0.5f);  // ties, but for the bias
    for (const bool biased : {false, true}) {
      const size_t slots = static_cast<size_t>(rows) * c.top_k;
      std::vector<int32_t> experts(slots);
      std::vector<float> weights(slots);
      switchyard::ChooseExperts(ctx_, c, {logits.data(), {9u, static_cast<size_t>(c.experts)}},
                                biased ? std::span<const float>(bias) : std::span<const float>(),
                                {experts.data(), {9u, static_cast<size_t>(c.top_k)}},
                                {weights.data(), {9u, static_cast<size_t>(c.top_k)}});
      const DeviceArray<float> dl(logits), db(bias);
      DeviceArray<float> dw(slots, kNan);
      const auto got = Run<int32_t>(slots, -7, [&](int32_t* out) {
        return ChooseExperts(nullptr, c, {dl.data(), rows, c.experts}, biased ? db.data() : nullptr,
                             out, dw.data());
      });
      EXPECT_EQ(got, experts);
      const std::vector<float> w = dw.Get();
      for (size_t i = 0; i < slots; ++i) EXPECT_NEAR(w[i], weights[i], 2e-6f * c.scale);
    }
  }
}

TEST_F(RowsTest, TokensAreTheHosts) {
  const SamplingParams all[] = {{.temperature = 0},
                                {.temperature = 1},
                                {.temperature = 0.7f, .top_k = 5},
                                {.temperature = 1.3f, .top_p = 0.6f},
                                {.temperature = 1, .min_p = 0.2f},
                                {.temperature = 2, .top_k = 40, .top_p = 0.9f, .min_p = 0.001f},
                                {.temperature = 1, .top_k = 1},
                                {.temperature = 100, .top_p = 0.01f}};
  for (const int vocabulary : {1, 50, 1500}) {
    const int rows = 2 * static_cast<int>(std::size(all));
    std::vector<float> logits = Normal(static_cast<size_t>(rows) * vocabulary, 2.0f);
    for (float& l : logits) l = std::round(l * 8) / 8;  // ties
    // What is not finite is not drawn, and what was drawn beside it has no log-probability.
    for (int i = 0; i < vocabulary / 3; ++i) logits[i] = -INFINITY;
    if (vocabulary > 1) logits[2 * vocabulary - 1] = -INFINITY;
    std::vector<RowSampling> params;
    std::vector<TokenId> expected;
    std::vector<SampledToken> scores;
    for (int r = 0; r < rows; ++r) {
      SamplingParams p = all[r % std::size(all)];
      p.seed = 1000 + r;
      p.sample = r % 3;
      params.push_back({p.temperature, p.top_k, p.top_p, p.min_p, p.seed, 5u + r, p.sample, 0});
      const std::span<const float> row(&logits[static_cast<size_t>(r) * vocabulary], vocabulary);
      expected.push_back(ChooseToken(row, p, 5u + r));
      scores.push_back(ScoreToken(row, expected.back(), 0));
    }
    const DeviceArray<float> dl(logits);
    const DeviceArray<RowSampling> dp(params);
    const DeviceMatrix<const float> rows_of(dl.data(), rows, vocabulary);
    const auto got = Run<int32_t>(
        rows, -1, [&](int32_t* out) { return SampleTokens(nullptr, rows_of, dp.data(), out); });
    EXPECT_EQ(got, expected);
    const DeviceArray<int32_t> tokens(got);
    DeviceArray<int32_t> ranks(rows, -1);
    const auto logprobs = Run<float>(rows, kNan, [&](float* out) {
      return ScoreTokens(nullptr, rows_of, tokens.data(), out, ranks.data());
    });
    const std::vector<int32_t> rank = ranks.Get();
    for (int r = 0; r < rows; ++r) {
      if (r < 2 && vocabulary > 1) {
        EXPECT_TRUE(std::isnan(logprobs[r])) << r;
      } else {
        EXPECT_NEAR(logprobs[r], scores[r].logprob, 1e-5f);
      }
      EXPECT_EQ(rank[r], scores[r].rank);
    }
  }
}

}  // namespace
}  // namespace switchyard::cuda
