// Every kernel set that this CPU can run, against the reference and against itself: outputs start
// as NaN, and a row's bits may not depend on its company. Attention has a file of its own.
#include "kernels/conformance.h"

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <utility>
#include <vector>

namespace switchyard {
namespace {

TEST_P(Conformance, SmallGemmByHand) {
  KernelContext ctx(1);
  const std::vector<float> w = {3, 4, 5, 6, -1, 0.5f}, x = {1, 2, -2, 4};
  for (const WeightFormat format : {WeightFormat::kFloat32, WeightFormat::kBfloat16}) {
    const PackedWeight packed = set_.gemm->Pack({w.data(), DType::kFloat32, 3, 2}, format);
    Poisoned y(2, 3);
    set_.gemm->Gemm(ctx, View(x, 2), packed, y.matrix);
    const std::vector<float> expected = {11, 17, 0, 10, 14, 4};
    for (int i = 0; i < 6; ++i) EXPECT_EQ(y.matrix(i / 3, i % 3), expected[i]) << i;
  }
}

TEST_P(Conformance, SmallInt8GemmByHand) {
  // A greatest value of 127 makes a scale of 1, so that integers stay what they are; of 254, 2.
  KernelContext ctx(1);
  std::vector<float> w(140, 0.0f), x(2 * 140, 0.0f);
  w[0] = 127, w[1] = -4, w[2] = 2.5f, w[130] = -254, w[131] = 3.0f;
  x[0] = 127, x[1] = 3, x[2] = 1.5f, x[130] = 127, x[131] = -5;
  x[140] = kNan, x[140 + 130] = 1;
  const PackedWeight packed =
      set_.gemm->Pack({w.data(), DType::kFloat32, 1, 140}, WeightFormat::kInt8);
  Poisoned y(2, 1);
  set_.gemm->Gemm(ctx, View(x, 140), packed, y.matrix);
  // 2.5, 1.5 and 3 / 2 are ties: all become 2.
  EXPECT_EQ(y.matrix(0, 0), 127 * 127 - 4 * 3 + 2 * 2 - 254 * 127 + 4 * -5);
  EXPECT_TRUE(std::isnan(y.matrix(1, 0)));
}

TEST_P(Conformance, SmallInt4GemmByHand) {
  // A greatest value of 7 makes a scale of 1; of 14, 2.
  KernelContext ctx(1);
  std::vector<float> w(141, 0.0f), x(141, 0.0f);
  for (int i = 0; i < 8; ++i) w[i] = static_cast<float>(i) - 4, x[i] = static_cast<float>(1 << i);
  w[7] = 7, w[8] = -7, w[130] = -14, w[131] = 3.0f, w[140] = 6;
  x[7] = 127, x[8] = -3, x[130] = 127, x[131] = -5, x[140] = 9;
  const PackedWeight packed =
      set_.gemm->Pack({w.data(), DType::kFloat32, 1, 141}, WeightFormat::kInt4);
  Poisoned y(1, 1);
  set_.gemm->Gemm(ctx, View(x, 141), packed, y.matrix);
  float expected = 7 * 127 + 7 * 3 - 14 * 127 + 4 * -5 + 6 * 9;  // 3 / 2 is a tie: 2
  for (int i = 0; i < 7; ++i) expected += w[i] * x[i];
  EXPECT_EQ(y.matrix(0, 0), expected);
}

TEST_P(Conformance, IntegerGemmsAreTheReferencesToTheBit) {
  KernelContext ctx(2);
  using Shape = std::array<size_t, 3>;
  for (const auto& [format, shape] : {std::pair{WeightFormat::kInt8, Shape{1, 64, 512}},
                                      {WeightFormat::kInt8, {7, 70, 129}},
                                      {WeightFormat::kInt8, {13, 200, 1000}},
                                      {WeightFormat::kInt4, {1, 64, 512}},
                                      {WeightFormat::kInt4, {7, 70, 133}},
                                      {WeightFormat::kInt4, {13, 200, 1001}}}) {
    const auto [m, n, k] = shape;
    const Weight w = MakeWeight(n, k, DType::kBfloat16);
    std::vector<float> x = Normal(m * k);
    for (size_t i = 0; i < k; ++i) x[i] *= i < 128 ? 0.0f : i < 256 ? 1e-38f : 1e20f;
    if (m > 1) x.back() = INFINITY;
    Poisoned y(m, n), expected(m, n);
    const Matrix<const float> view(x.data(), {m, k});
    set_.gemm->Gemm(ctx, view, set_.gemm->Pack(w.view(), format), y.matrix);
    reference_.gemm->Gemm(ctx, view, reference_.gemm->Pack(w.view(), format), expected.matrix);
    for (size_t r = 0; r < m; ++r) {
      for (size_t i = 0; i < n; ++i) {
        if (m > 1 && r + 1 == m) {
          ASSERT_TRUE(std::isnan(y.matrix(r, i)) && std::isnan(expected.matrix(r, i)));
        } else {
          ASSERT_EQ(y.matrix(r, i), expected.matrix(r, i)) << r << " " << i;
        }
      }
    }
  }
}

TEST_P(Conformance, GemmMatchesTheReference) {
  const struct {
    size_t m, n, k;
  } shapes[] = {{0, 5, 7},    {1, 1, 1},    {1, 64, 32},  {2, 15, 33},   {3, 17, 64},  {5, 100, 31},
                {6, 130, 40}, {7, 48, 129}, {13, 65, 96}, {31, 257, 77}, {4, 33, 5000}};
  KernelContext ctx(2);
  for (const auto& [m, n, k] : shapes) {
    for (const DType stored : kDTypes) {
      const Weight w = MakeWeight(n, k, stored);
      const std::vector<float> x = Normal(m * k);
      for (const WeightFormat format : kFormats) {
        SCOPED_TRACE(testing::Message()
                     << m << " " << n << " " << k << " " << static_cast<int>(format));
        Poisoned y(m, n), expected(m, n);
        const Matrix<const float> view(x.data(), {m, k});
        set_.gemm->Gemm(ctx, view, set_.gemm->Pack(w.view(), format), y.matrix);
        reference_.gemm->Gemm(ctx, view, reference_.gemm->Pack(w.view(), format), expected.matrix);
        // Tensor cores cut the sum of every few products, where the reference rounds.
        const bool cut = k > 1000 && set_.name.starts_with("cuda");
        ExpectNear(y.matrix, expected.matrix, cut ? 3e-5f : 1e-5f);
        EXPECT_TRUE(y.GapsAreUntouched());
      }
    }
  }
}

TEST_P(Conformance, GemmRowsDoNotDependOnTheBatch) {
  const size_t rows = 29, n = 170, k = 203;
  const std::vector<float> x = Normal(rows * k);
  const Weight w = MakeWeight(n, k, DType::kFloat32);
  KernelContext one(1), three(3);
  for (const WeightFormat format : kFormats) {
    const PackedWeight packed = set_.gemm->Pack(w.view(), format);
    Poisoned all(rows, n), threaded(rows, n), part(rows, n);
    set_.gemm->Gemm(one, View(x, k), packed, all.matrix);
    set_.gemm->Gemm(three, View(x, k), packed, threaded.matrix);
    EXPECT_TRUE(SameBits(all.data.data(), threaded.data.data(), (n + 5) * (rows - 1) + n));
    for (size_t begin = 0, count = 1; begin < rows; begin += count, ++count) {
      count = std::min(count, rows - begin);
      set_.gemm->Gemm(one, View(x, k).Slice(begin, count), packed, part.matrix.Slice(begin, count));
    }
    for (size_t r = 0; r < rows; ++r) {
      EXPECT_TRUE(SameBits(all.matrix.row(r), part.matrix.row(r), n)) << r;
    }
  }
}

TEST_P(Conformance, GemmsTogetherAreThoseAlone) {
  KernelContext ctx(3);
  const struct {
    size_t m, n, k;
    WeightFormat format;
    bool same_x;  // as the one before
  } shapes[] = {
      {5, 700, 90, WeightFormat::kBfloat16, false}, {5, 64, 90, WeightFormat::kBfloat16, true},
      {5, 33, 90, WeightFormat::kFloat32, true},    {0, 7, 12, WeightFormat::kBfloat16, false},
      {9, 130, 40, WeightFormat::kBfloat16, false}, {1, 900, 300, WeightFormat::kFloat32, false},
      {1, 20, 300, WeightFormat::kBfloat16, true},  {1, 20, 300, WeightFormat::kInt8, true},
      {1, 20, 300, WeightFormat::kInt4, true}};
  std::vector<std::vector<float>> xs;
  std::vector<PackedWeight> weights;
  std::vector<Poisoned> together, alone;
  for (const auto& s : shapes) {
    if (!s.same_x) xs.push_back(Normal(s.m * s.k));
    weights.push_back(set_.gemm->Pack(MakeWeight(s.n, s.k, DType::kFloat32).view(), s.format));
  }
  std::vector<GemmCall> calls;
  for (size_t i = 0, x = 0; i < std::size(shapes); ++i) {
    const auto& s = shapes[i];
    x += i > 0 && !s.same_x;
    together.emplace_back(s.m, s.n);
    alone.emplace_back(s.m, s.n);
    calls.push_back({{xs[x].data(), {s.m, s.k}}, &weights[i], together.back().matrix});
    set_.gemm->Gemm(ctx, calls.back().x, weights[i], alone.back().matrix);
  }
  set_.gemm->GemmAll(ctx, calls);
  for (size_t i = 0; i < calls.size(); ++i) {
    EXPECT_TRUE(SameBits(together[i].data.data(), alone[i].data.data(), alone[i].data.size())) << i;
  }
  set_.gemm->GemmAll(ctx, {});
}

TEST_P(Conformance, GemmOutputsDoNotDependOnTheOthers) {
  // A column of the product is the same whether the weight has 1 row or 100: expert and tensor
  // parallel ranks hold different slices.
  const size_t rows = 3, n = 100, k = 90;
  const std::vector<float> x = Normal(rows * k);
  const Weight w = MakeWeight(n, k, DType::kFloat32);
  KernelContext ctx(1);
  for (const WeightFormat format : kFormats) {
    Poisoned all(rows, n), single(rows, 1);
    set_.gemm->Gemm(ctx, View(x, k), set_.gemm->Pack(w.view(), format), all.matrix);
    for (size_t i = 0; i < n; ++i) {
      const WeightView row{w.floats.data() + i * k, DType::kFloat32, 1, k};
      set_.gemm->Gemm(ctx, View(x, k), set_.gemm->Pack(row, format), single.matrix);
      for (size_t r = 0; r < rows; ++r) {
        EXPECT_TRUE(SameBits(&all.matrix(r, i), &single.matrix(r, 0), 1)) << r << " " << i;
      }
    }
  }
}

// ---- Experts ----

struct Experts {
  std::vector<PackedExpert> packed;
  std::vector<const PackedExpert*> pointers;
};

class ExpertConformance : public Conformance {
 protected:
  void Make(size_t count, size_t hidden, size_t width, WeightFormat format) {
    mine_ = Experts();
    theirs_ = Experts();
    for (size_t e = 0; e < count; ++e) {
      const Weight gate = MakeWeight(width, hidden, DType::kBfloat16);
      const Weight up = MakeWeight(width, hidden, DType::kBfloat16);
      const Weight down = MakeWeight(hidden, width, DType::kFloat32);
      for (auto& [set, experts] : {std::pair{&set_, &mine_}, {&reference_, &theirs_}}) {
        experts->packed.push_back(
            set->grouped_gemm->PackExpert(gate.view(), up.view(), down.view(), format));
      }
    }
    for (Experts* experts : {&mine_, &theirs_}) {
      for (const PackedExpert& p : experts->packed) experts->pointers.push_back(&p);
    }
  }
  Experts mine_, theirs_;
};

TEST_P(ExpertConformance, SmallFfnByHand) {
  // gate·x = 0 gives 0; gate·x = 40 gives SiLU(40) = 40, times up·x = 2, times down.
  const std::vector<float> gate = {0, 0, 40, 0}, up = {1, 0, 0, 2}, down = {1, 0.5f, 8, 0.25f};
  KernelContext ctx(1);
  for (const WeightFormat format : {WeightFormat::kFloat32, WeightFormat::kBfloat16}) {
    const WeightView g{gate.data(), DType::kFloat32, 2, 2}, u{up.data(), DType::kFloat32, 2, 2},
        d{down.data(), DType::kFloat32, 2, 2};
    const PackedExpert packed = set_.grouped_gemm->PackExpert(g, u, d, format);
    const std::vector<const PackedExpert*> experts = {&packed};
    const std::vector<int32_t> offsets = {0, 1};
    const std::vector<float> x = {1, 1};
    Poisoned out(1, 2);
    set_.grouped_gemm->ExpertFfn(ctx, View(x, 2), {}, offsets, experts, out.matrix);
    EXPECT_EQ(out.matrix(0, 0), 40);
    EXPECT_EQ(out.matrix(0, 1), 20);
  }
}

TEST_P(ExpertConformance, FfnMatchesTheReference) {
  KernelContext ctx(2);
  const std::vector<int32_t> offsets = {0, 0, 1, 8, 8, 21};
  const size_t rows = offsets.back();
  for (const auto& [hidden, width] :
       {std::pair<size_t, size_t>{32, 64}, {65, 33}, {128, 7}, {1, 1}, {90, 150}}) {
    for (const WeightFormat format : kFormats) {
      SCOPED_TRACE(testing::Message() << hidden << " " << width << " " << static_cast<int>(format));
      Make(offsets.size() - 1, hidden, width, format);
      const std::vector<float> x = Normal(rows * hidden);
      Poisoned out(rows, hidden), expected(rows, hidden);
      set_.grouped_gemm->ExpertFfn(ctx, View(x, hidden), {}, offsets, mine_.pointers, out.matrix);
      reference_.grouped_gemm->ExpertFfn(ctx, View(x, hidden), {}, offsets, theirs_.pointers,
                                         expected.matrix);
      // An activation that falls on the other side of a rounding moves by 2^-8 of itself.
      ExpectNear(out.matrix, expected.matrix, format == WeightFormat::kFloat32 ? 1e-5f : 8e-3f);
      EXPECT_TRUE(out.GapsAreUntouched());
      for (size_t i = 0; format != WeightFormat::kFloat32 && i < rows * hidden; ++i) {
        const float v = out.matrix(i / hidden, i % hidden);
        ASSERT_EQ(v, RoundToBf16(v));
      }
    }
  }
}

TEST_P(ExpertConformance, RowsDependOnTheirExpertAlone) {
  KernelContext one(1), three(3);
  const std::vector<int32_t> offsets = {0, 9, 9, 11, 30};
  const size_t rows = offsets.back(), hidden = 70, width = 45;
  for (const WeightFormat format : kFormats) {
    Make(offsets.size() - 1, hidden, width, format);
    const std::vector<float> x = Normal(rows * hidden);
    Poisoned all(rows, hidden), single(1, hidden);
    set_.grouped_gemm->ExpertFfn(three, View(x, hidden), {}, offsets, mine_.pointers, all.matrix);
    for (size_t e = 0; e + 1 < offsets.size(); ++e) {
      for (int r = offsets[e]; r < offsets[e + 1]; ++r) {
        set_.grouped_gemm->ExpertFfn(one, View(x, hidden).Slice(r, 1), {},
                                     std::vector<int32_t>{0, 1},
                                     std::span(mine_.pointers).subspan(e, 1), single.matrix);
        EXPECT_TRUE(SameBits(all.matrix.row(r), single.matrix.row(0), hidden)) << r;
      }
    }
  }
}

TEST_P(ExpertConformance, RowsByIndexInBf16AreThoseOfFloats) {
  KernelContext ctx(2);
  const std::vector<int32_t> offsets = {0, 7, 7, 16},
                             index = {4, 0, 2, 2, 1, 3, 4, 0, 1, 2, 3, 4, 0, 0, 4, 2};
  const size_t tokens = 5, rows = index.size(), hidden = 75, width = 40;
  std::vector<float> each = Normal(tokens * hidden), all;
  std::transform(each.begin(), each.end(), each.begin(), RoundToBf16);
  for (const int32_t i : index) all.insert(all.end(), &each[i * hidden], &each[(i + 1) * hidden]);
  const size_t row_bytes = hidden * sizeof(Bf16) + 6;
  std::vector<std::byte> x(tokens * row_bytes), y(rows * row_bytes);
  for (size_t i = 0; i < each.size(); ++i) {
    reinterpret_cast<Bf16*>(&x[i / hidden * row_bytes])[i % hidden] = ToBf16(each[i]);
  }
  const Rows out(y.data(), DType::kBfloat16, rows, hidden, row_bytes);
  for (const KernelSet* set : {&set_, &reference_}) {
    for (const WeightFormat format : kFormats) {
      Make(offsets.size() - 1, hidden, width, format);
      const auto& experts = set == &set_ ? mine_.pointers : theirs_.pointers;
      Poisoned expected(rows, hidden);
      set->grouped_gemm->ExpertFfn(ctx, View(all, hidden), {}, offsets, experts, expected.matrix);
      set->grouped_gemm->ExpertFfn(ctx, {x.data(), DType::kBfloat16, tokens, hidden, row_bytes},
                                   index, offsets, experts, out);
      for (size_t r = 0; r < rows; ++r) {
        for (size_t c = 0; c < hidden; ++c) {
          ASSERT_EQ(ConstRows(out)(r, c), RoundToBf16(expected.matrix(r, c))) << r << " " << c;
        }
      }
    }
  }
}

// ---- Norm ----

TEST_P(Conformance, NormMatchesTheReferenceInPlaceToo) {
  KernelContext ctx(2);
  for (const size_t n : {1, 7, 8, 16, 33, 64, 129, 1000}) {
    const std::vector<float> weight = Normal(n);
    std::vector<float> x = Normal(5 * n, 3.0f);
    Poisoned y(5, n), expected(5, n), single(1, n);
    set_.norm->RmsNorm(ctx, View(x, n), weight, 1e-6f, y.matrix);
    reference_.norm->RmsNorm(ctx, View(x, n), weight, 1e-6f, expected.matrix);
    ExpectNear(y.matrix, expected.matrix, 2e-6f);
    EXPECT_TRUE(y.GapsAreUntouched());
    set_.norm->RmsNorm(ctx, View(x, n).Slice(3, 1), weight, 1e-6f, single.matrix);
    EXPECT_TRUE(SameBits(single.matrix.row(0), y.matrix.row(3), n));
    const Matrix<float> in_place(x.data(), {5, n});
    set_.norm->RmsNorm(ctx, in_place, weight, 1e-6f, in_place);
    for (size_t r = 0; r < 5; ++r) EXPECT_TRUE(SameBits(in_place.row(r), y.matrix.row(r), n));
  }
}

TEST_P(Conformance, SmallNormByHand) {
  KernelContext ctx(1);
  const std::vector<float> x = {3, 4, 0, 0}, weight = {1, 2, 5, 5};  // mean square 25 / 4
  Poisoned y(1, 4);
  set_.norm->RmsNorm(ctx, View(x, 4), weight, 0.0f, y.matrix);
  EXPECT_NEAR(y.matrix(0, 0), 1.2f, 1e-6);
  EXPECT_NEAR(y.matrix(0, 1), 3.2f, 1e-6);
  EXPECT_EQ(y.matrix(0, 2), 0);
}

INSTANTIATE_TEST_SUITE_P(Sets, Conformance, testing::ValuesIn(ConformanceNames()), NameOf);
INSTANTIATE_TEST_SUITE_P(Sets, ExpertConformance, testing::ValuesIn(ConformanceNames()), NameOf);

}  // namespace
}  // namespace switchyard
