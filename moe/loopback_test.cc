#include "moe/loopback.h"

#include <gtest/gtest.h>

#include <random>

#include "moe/ep_testing.h"

namespace switchyard {
namespace {

constexpr int kExperts = 5, kTopK = 2, kHidden = 3;

struct Batch {
  std::vector<float> hidden, weights;
  std::vector<int32_t> experts;
  size_t tokens;
  std::vector<int32_t> positions = std::vector<int32_t>(tokens);
  Matrix<const float> h() const { return {hidden.data(), {tokens, kHidden}}; }
  Matrix<const float> w() const { return {weights.data(), {tokens, kTopK}}; }
  Matrix<const int32_t> e() const { return {experts.data(), {tokens, kTopK}}; }
};

Batch RandomBatch(std::mt19937& rng, size_t tokens) {
  Batch b{{}, {}, {}, tokens};
  std::uniform_real_distribution<float> real(-1, 1);
  for (size_t i = 0; i < tokens * kHidden; ++i) b.hidden.push_back(real(rng));
  for (size_t i = 0; i < tokens * kTopK; ++i) b.weights.push_back(real(rng));
  for (size_t t = 0; t < tokens; ++t) {
    const int first = static_cast<int>(rng() % kExperts);
    b.experts.push_back(first);
    b.experts.push_back((first + 1 + static_cast<int>(rng() % (kExperts - 1))) % kExperts);
  }
  return b;
}

std::unique_ptr<LoopbackDispatcher> Make(DType dtype, int max_tokens = 64) {
  auto d = LoopbackDispatcher::Create({.experts = kExperts,
                                       .top_k = kTopK,
                                       .hidden = kHidden,
                                       .max_tokens = max_tokens,
                                       .dtype = dtype});
  SY_CHECK(d.ok());
  return *std::move(d);
}

float Wanted(const Batch& b, size_t t, int i, DType dtype) {
  float sum = 0;
  for (int k = 0; k < kTopK; ++k) {
    const auto rounded = [&](float x) { return dtype == DType::kBfloat16 ? RoundToBf16(x) : x; };
    const float e = static_cast<float>(b.e()(t, k));
    sum += b.w()(t, k) * rounded(rounded(b.h()(t, i)) * (e + 1) + e);
  }
  return sum;
}

TEST(LoopbackTest, GroupsByExpertThenToken) {
  auto d = Make(DType::kFloat32);
  const Batch b{{1, 1, 1, 2, 2, 2, 3, 3, 3}, {1, 1, 1, 1, 1, 1}, {4, 0, 0, 2, 4, 2}, 3};
  auto handle = d->Send(0, b.h(), b.e(), b.w(), b.positions);
  ASSERT_TRUE(handle.ok()) << handle.status();
  auto in = d->Receive(*handle);
  ASSERT_TRUE(in.ok());
  EXPECT_EQ(std::vector<int32_t>(in->offsets.begin(), in->offsets.end()),
            (std::vector<int32_t>{0, 2, 2, 4, 4, 6}));
  std::vector<float> first;
  for (const int32_t token : in->index) first.push_back(in->tokens(token, 0));
  EXPECT_EQ(first, (std::vector<float>{1, 2, 2, 3, 1, 3}));
}

TEST(LoopbackTest, CombinesInSlotOrderWithTwoInFlight) {
  for (DType dtype : {DType::kFloat32, DType::kBfloat16}) {
    std::mt19937 rng(7);
    auto d = Make(dtype);
    for (int round = 0; round < 20; ++round) {
      const Batch a = RandomBatch(rng, rng() % 8), b = RandomBatch(rng, rng() % 8);
      auto ha = d->Send(1, a.h(), a.e(), a.w(), a.positions);
      auto hb = d->Send(1, b.h(), b.e(), b.w(), b.positions);
      ASSERT_TRUE(ha.ok() && hb.ok());
      auto ra = d->Receive(*ha);
      ASSERT_TRUE(ra.ok());
      const testing::Computed ya = testing::Compute(*d, 1, *ra);
      std::vector<float> out_a(a.tokens * kHidden, NAN), out_b(b.tokens * kHidden, NAN);
      ASSERT_TRUE(d->CombineSend(*ha, ya.rows, {out_a.data(), {a.tokens, kHidden}}).ok());
      auto rb = d->Receive(*hb);
      ASSERT_TRUE(rb.ok());
      const testing::Computed yb = testing::Compute(*d, 1, *rb);
      ASSERT_TRUE(d->CombineReceive(*ha).ok());
      ASSERT_TRUE(d->CombineSend(*hb, yb.rows, {out_b.data(), {b.tokens, kHidden}}).ok());
      ASSERT_TRUE(d->CombineReceive(*hb).ok());
      for (size_t i = 0; i < out_a.size(); ++i) {
        EXPECT_EQ(out_a[i], Wanted(a, i / kHidden, static_cast<int>(i % kHidden), dtype));
      }
      for (size_t i = 0; i < out_b.size(); ++i) {
        EXPECT_EQ(out_b[i], Wanted(b, i / kHidden, static_cast<int>(i % kHidden), dtype));
      }
    }
  }
}

TEST(LoopbackTest, NoTokensIsAnOrdinaryStep) {
  auto d = Make(DType::kBfloat16);
  const Batch b{{}, {}, {}, 0};
  auto handle = d->Send(0, b.h(), b.e(), b.w(), b.positions);
  ASSERT_TRUE(handle.ok());
  auto in = d->Receive(*handle);
  ASSERT_TRUE(in.ok());
  EXPECT_EQ(in->tokens.rows, 0u);
  EXPECT_EQ(in->offsets.back(), 0);
  EXPECT_TRUE(d->CombineSend(*handle, in->tokens, {nullptr, {0, kHidden}}).ok());
  EXPECT_TRUE(d->CombineReceive(*handle).ok());
}

TEST(LoopbackTest, RefusesBadShapesAndIds) {
  auto d = Make(DType::kFloat32, 2);
  std::mt19937 rng(1);
  const Batch three = RandomBatch(rng, 3);
  EXPECT_EQ(d->Send(0, three.h(), three.e(), three.w(), three.positions).status().code(),
            absl::StatusCode::kInvalidArgument);
  Batch b = RandomBatch(rng, 1);
  EXPECT_EQ(d->Send(0, three.h().Slice(0, 2), b.e(), b.w(), b.positions).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(d->Send(0, b.h(), b.e(), b.w().Slice(0, 0), b.positions).status().code(),
            absl::StatusCode::kInvalidArgument);
  for (int32_t bad : {-1, kExperts}) {
    b.experts[1] = bad;
    EXPECT_EQ(d->Send(0, b.h(), b.e(), b.w(), b.positions).status().code(),
              absl::StatusCode::kInvalidArgument);
  }
  EXPECT_FALSE(
      LoopbackDispatcher::Create({.experts = 4, .top_k = 5, .hidden = 1, .max_tokens = 1}).ok());
  EXPECT_FALSE(LoopbackDispatcher::Create({.experts = 4,
                                           .top_k = 2,
                                           .hidden = 1,
                                           .max_tokens = 1,
                                           .dtype = DType::kFloat32,
                                           .int8_tokens = true})
                   .ok());
  EXPECT_FALSE(
      LoopbackDispatcher::Create({.experts = 4, .top_k = 2, .hidden = 1, .max_tokens = INT32_MAX})
          .ok());
}

TEST(LoopbackTest, RefusesCallsOutOfOrder) {
  auto d = Make(DType::kFloat32);
  std::mt19937 rng(2);
  const Batch b = RandomBatch(rng, 2);
  std::vector<float> out(2 * kHidden);
  const Matrix<float> y(out.data(), {2, kHidden});
  constexpr auto kWrong = absl::StatusCode::kFailedPrecondition;
  EXPECT_EQ(d->Receive({0}).status().code(), kWrong);
  const DispatchHandle first = *d->Send(0, b.h(), b.e(), b.w(), b.positions),
                       second = *d->Send(0, b.h(), b.e(), b.w(), b.positions);
  EXPECT_EQ(d->Send(0, b.h(), b.e(), b.w(), b.positions).status().code(), kWrong);
  EXPECT_EQ(d->Receive(second).status().code(), kWrong);  // overtakes the first
  auto in = d->Receive(first);
  ASSERT_TRUE(in.ok());
  EXPECT_EQ(d->Receive(first).status().code(), kWrong);
  EXPECT_EQ(d->CombineReceive(first).code(), kWrong);
  constexpr auto kBad = absl::StatusCode::kInvalidArgument;
  const testing::Computed z = testing::Compute(*d, 0, *in);
  Rows few = z.rows, other = z.rows;
  few.rows -= 1;
  other.dtype = DType::kBfloat16;
  EXPECT_EQ(d->CombineSend(first, few, y).code(), kBad);
  EXPECT_EQ(d->CombineSend(first, other, y).code(), kBad);
  EXPECT_EQ(d->CombineSend(first, z.rows, y.Slice(0, 1)).code(), kBad);
  ASSERT_TRUE(d->CombineSend(first, z.rows, y).ok());
  ASSERT_TRUE(d->CombineReceive(first).ok());
  EXPECT_EQ(d->CombineReceive(first).code(), kWrong);
  EXPECT_TRUE(d->Receive(second).ok());
}

}  // namespace
}  // namespace switchyard
