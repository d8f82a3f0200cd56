// Every kernel set that this CPU can run, against the reference and against itself: outputs start
// as NaN, memory that a kernel must not use is NaN, and a row's bits may not depend on its company.
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "kernels/kernel_set.h"

namespace switchyard {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

class Conformance : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    auto set = SelectKernels(GetParam());
    if (absl::IsFailedPrecondition(set.status())) {
      GTEST_SKIP() << "this CPU cannot run " << GetParam();
    }
    ASSERT_TRUE(set.ok()) << set.status();
    set_ = *std::move(set);
    reference_ = *SelectKernels("reference");
  }

  std::vector<float> Normal(size_t n, float scale = 1.0f) {
    std::normal_distribution<float> normal(0, scale);
    std::vector<float> v(n);
    for (float& f : v) f = normal(rng_);
    return v;
  }

  // A weight as a checkpoint has it.
  struct Weight {
    std::vector<float> floats;
    std::vector<Bf16> halves;
    size_t n, k;
    WeightView view() const {
      if (halves.empty()) return {floats.data(), DType::kFloat32, n, k};
      return {halves.data(), DType::kBfloat16, n, k};
    }
  };
  Weight MakeWeight(size_t n, size_t k, DType dtype) {
    Weight w{Normal(n * k, 1.0f / std::sqrt(static_cast<float>(k))), {}, n, k};
    if (dtype == DType::kBfloat16) {
      for (const float f : w.floats) w.halves.push_back(ToBf16(f));
    }
    return w;
  }

  KernelSet set_, reference_;
  std::mt19937 rng_{20240607};
};

// Rows further apart than they are wide, all NaN.
struct Poisoned {
  Poisoned(size_t rows, size_t cols)
      : data(rows * (cols + 5), kNan), matrix(data.data(), {rows, cols}, cols + 5) {}
  // Nothing was written between the rows.
  bool GapsAreUntouched() const {
    for (size_t r = 0; r < matrix.rows(); ++r) {
      for (size_t i = 0; i < 5; ++i) {
        if (!std::isnan(matrix.row(r)[matrix.cols() + i])) return false;
      }
    }
    return true;
  }
  std::vector<float> data;
  Matrix<float> matrix;
};

Matrix<const float> View(const std::vector<float>& v, size_t cols) {
  return {v.data(), {v.size() / cols, cols}};
}

bool SameBits(const float* a, const float* b, size_t n) {
  return std::memcmp(a, b, n * sizeof(float)) == 0;
}

// |a − b| <= relative · the greatest |b| everywhere; NaN is no match.
void ExpectNear(Matrix<const float> a, Matrix<const float> b, float relative) {
  float greatest = 0;
  for (size_t r = 0; r < b.rows(); ++r) {
    for (size_t c = 0; c < b.cols(); ++c) greatest = std::max(greatest, std::abs(b(r, c)));
  }
  for (size_t r = 0; r < b.rows(); ++r) {
    for (size_t c = 0; c < b.cols(); ++c) {
      ASSERT_LE(std::abs(a(r, c) - b(r, c)), relative * greatest)
          << "row " << r << " column " << c << ": " << a(r, c) << " for " << b(r, c);
    }
  }
}

constexpr DType kDTypes[] = {DType::kFloat32, DType::kBfloat16};

TEST_P(Conformance, SmallGemmByHand) {
  KernelContext ctx(1);
  const std::vector<float> w = {3, 4, 5, 6, -1, 0.5f}, x = {1, 2, -2, 4};
  for (const DType dtype : kDTypes) {
    const PackedWeight packed = set_.gemm->Pack({w.data(), DType::kFloat32, 3, 2}, dtype);
    Poisoned y(2, 3);
    set_.gemm->Gemm(ctx, View(x, 2), packed, y.matrix);
    const std::vector<float> expected = {11, 17, 0, 10, 14, 4};
    for (int i = 0; i < 6; ++i) EXPECT_EQ(y.matrix(i / 3, i % 3), expected[i]) << i;
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
      for (const DType dtype : kDTypes) {
        SCOPED_TRACE(testing::Message() << m << " " << n << " " << k << " " << Name(dtype));
        Poisoned y(m, n), expected(m, n);
        const Matrix<const float> view(x.data(), {m, k});
        set_.gemm->Gemm(ctx, view, set_.gemm->Pack(w.view(), dtype), y.matrix);
        reference_.gemm->Gemm(ctx, view, reference_.gemm->Pack(w.view(), dtype), expected.matrix);
        ExpectNear(y.matrix, expected.matrix, 1e-5f);
        EXPECT_TRUE(y.GapsAreUntouched());
      }
    }
  }
}

TEST_P(Conformance, GemmRowsDoNotDependOnTheBatch) {
  const size_t rows = 29, n = 150, k = 203;
  const std::vector<float> x = Normal(rows * k);
  const Weight w = MakeWeight(n, k, DType::kFloat32);
  KernelContext one(1), three(3);
  for (const DType dtype : kDTypes) {
    const PackedWeight packed = set_.gemm->Pack(w.view(), dtype);
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

TEST_P(Conformance, GemmOutputsDoNotDependOnTheOthers) {
  // A column of the product is the same whether the weight has 1 row or 100: expert and tensor
  // parallel ranks hold different slices.
  const size_t rows = 3, n = 100, k = 90;
  const std::vector<float> x = Normal(rows * k);
  const Weight w = MakeWeight(n, k, DType::kFloat32);
  KernelContext ctx(1);
  for (const DType dtype : kDTypes) {
    Poisoned all(rows, n), single(rows, 1);
    set_.gemm->Gemm(ctx, View(x, k), set_.gemm->Pack(w.view(), dtype), all.matrix);
    for (size_t i = 0; i < n; ++i) {
      const WeightView row{w.floats.data() + i * k, DType::kFloat32, 1, k};
      set_.gemm->Gemm(ctx, View(x, k), set_.gemm->Pack(row, dtype), single.matrix);
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
  void Make(size_t count, size_t hidden, size_t width, DType dtype) {
    mine_ = Experts();
    theirs_ = Experts();
    for (size_t e = 0; e < count; ++e) {
      const Weight gate = MakeWeight(width, hidden, DType::kBfloat16);
      const Weight up = MakeWeight(width, hidden, DType::kBfloat16);
      const Weight down = MakeWeight(hidden, width, DType::kFloat32);
      for (auto& [set, experts] : {std::pair{&set_, &mine_}, {&reference_, &theirs_}}) {
        experts->packed.push_back(
            set->grouped_gemm->PackExpert(gate.view(), up.view(), down.view(), dtype));
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
  for (const DType dtype : kDTypes) {
    const WeightView g{gate.data(), DType::kFloat32, 2, 2}, u{up.data(), DType::kFloat32, 2, 2},
        d{down.data(), DType::kFloat32, 2, 2};
    const PackedExpert packed = set_.grouped_gemm->PackExpert(g, u, d, dtype);
    const std::vector<const PackedExpert*> experts = {&packed};
    const std::vector<int32_t> offsets = {0, 1};
    const std::vector<float> x = {1, 1};
    Poisoned out(1, 2);
    set_.grouped_gemm->ExpertFfn(ctx, View(x, 2), offsets, experts, out.matrix);
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
    for (const DType dtype : kDTypes) {
      SCOPED_TRACE(testing::Message() << hidden << " " << width << " " << Name(dtype));
      Make(offsets.size() - 1, hidden, width, dtype);
      const std::vector<float> x = Normal(rows * hidden);
      Poisoned out(rows, hidden), expected(rows, hidden);
      set_.grouped_gemm->ExpertFfn(ctx, View(x, hidden), offsets, mine_.pointers, out.matrix);
      reference_.grouped_gemm->ExpertFfn(ctx, View(x, hidden), offsets, theirs_.pointers,
                                         expected.matrix);
      // An activation that falls on the other side of a rounding moves by 2^-8 of itself.
      ExpectNear(out.matrix, expected.matrix, dtype == DType::kFloat32 ? 1e-5f : 8e-3f);
      EXPECT_TRUE(out.GapsAreUntouched());
      for (size_t i = 0; dtype == DType::kBfloat16 && i < rows * hidden; ++i) {
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
  for (const DType dtype : kDTypes) {
    Make(offsets.size() - 1, hidden, width, dtype);
    const std::vector<float> x = Normal(rows * hidden);
    Poisoned all(rows, hidden), single(1, hidden);
    set_.grouped_gemm->ExpertFfn(three, View(x, hidden), offsets, mine_.pointers, all.matrix);
    for (size_t e = 0; e + 1 < offsets.size(); ++e) {
      for (int r = offsets[e]; r < offsets[e + 1]; ++r) {
        set_.grouped_gemm->ExpertFfn(one, View(x, hidden).Slice(r, 1), std::vector<int32_t>{0, 1},
                                     std::span(mine_.pointers).subspan(e, 1), single.matrix);
        EXPECT_TRUE(SameBits(all.matrix.row(r), single.matrix.row(0), hidden)) << r;
      }
    }
  }
}

// ---- Attention ----

// A cache of NaN, a row of queries for every position of one sequence, and its keys and values.
class AttentionConformance : public Conformance {
 protected:
  void Make(const AttentionShape& shape, DType dtype, int length, int block_tokens,
            bool values_in_keys) {
    shape_ = shape;
    const size_t k = static_cast<size_t>(shape.kv_heads) * shape.qk_dim;
    const size_t v = values_in_keys ? 0 : static_cast<size_t>(shape.kv_heads) * shape.v_dim;
    const size_t token = k + v + 3;
    const int blocks = (length + block_tokens - 1) / block_tokens + 4;
    addressing_ = {.dtype = dtype,
                   .block_tokens = block_tokens,
                   .block_stride = token * block_tokens + 1,
                   .k_offset = 1,
                   .k_head_stride = static_cast<size_t>(shape.qk_dim),
                   .k_token_stride = token,
                   .v_offset = values_in_keys ? 1 : 1 + k,
                   .v_head_stride = static_cast<size_t>(shape.v_dim),
                   .v_token_stride = token};
    const size_t elements = addressing_.block_stride * blocks + 1;
    cache_.resize(elements * SizeOf(dtype));
    for (size_t i = 0; i < elements; ++i) Put(i, kNan);
    blocks_.resize(blocks);
    for (int i = 0; i < blocks; ++i) blocks_[i] = i;
    std::shuffle(blocks_.begin(), blocks_.end(), rng_);
    q_ = Normal(static_cast<size_t>(length) * shape.heads * shape.qk_dim);
    const std::vector<float> kv = Normal((k + v) * length);
    for (int p = 0; p < length; ++p) {
      for (size_t i = 0; i < k + v; ++i) Put(TokenOffset(p) + i, kv[p * (k + v) + i]);
    }
  }

  size_t TokenOffset(int position) const {
    const size_t block = blocks_[position / addressing_.block_tokens];
    return block * addressing_.block_stride + 1 +
           position % addressing_.block_tokens * addressing_.k_token_stride;
  }

  void Put(size_t element, float value) {
    if (addressing_.dtype == DType::kFloat32) {
      std::memcpy(cache_.data() + element * 4, &value, 4);
    } else {
      const Bf16 b = ToBf16(value);
      std::memcpy(cache_.data() + element * 2, &b, 2);
    }
  }

  // Attention of positions [begin, begin + count) of the sequence into the same rows of out.
  void Run(const KernelSet& set, KernelContext& ctx, int begin, int count, Matrix<float> out) {
    const AttentionSequence s{
        .first_row = begin, .count = count, .first_position = begin, .blocks = blocks_};
    set.attention->PagedAttention(ctx, shape_, addressing_, cache_.data(), {&s, 1},
                                  View(q_, q_cols()), out);
  }
  size_t q_cols() const { return static_cast<size_t>(shape_.heads) * shape_.qk_dim; }
  size_t out_cols() const { return static_cast<size_t>(shape_.heads) * shape_.v_dim; }

  AttentionShape shape_;
  KvAddressing addressing_;
  std::vector<std::byte> cache_;
  std::vector<int32_t> blocks_;
  std::vector<float> q_;
};

TEST_P(AttentionConformance, SmallAttentionByHand) {
  // Two keys with equal scores average; the first position sees its own value alone.
  KernelContext ctx(1);
  const std::vector<float> kv = {1, 0, 6, -4, 1, 0, 2, 8};  // per token: key (2), value (2)
  const std::vector<float> q = {3, 5, 3, 5};
  const std::vector<int32_t> blocks = {0};
  const AttentionSequence s{.first_row = 0, .count = 2, .first_position = 0, .blocks = blocks};
  const KvAddressing addressing{.dtype = DType::kFloat32,
                                .block_tokens = 2,
                                .block_stride = 8,
                                .k_offset = 0,
                                .k_head_stride = 2,
                                .k_token_stride = 4,
                                .v_offset = 2,
                                .v_head_stride = 2,
                                .v_token_stride = 4};
  Poisoned out(2, 2);
  set_.attention->PagedAttention(
      ctx, {.heads = 1, .kv_heads = 1, .qk_dim = 2, .v_dim = 2, .scale = 0.5f}, addressing,
      reinterpret_cast<const std::byte*>(kv.data()), {&s, 1}, View(q, 2), out.matrix);
  EXPECT_EQ(out.matrix(0, 0), 6);
  EXPECT_EQ(out.matrix(0, 1), -4);
  EXPECT_EQ(out.matrix(1, 0), 4);
  EXPECT_EQ(out.matrix(1, 1), 2);
}

struct AttentionCase {
  AttentionShape shape;
  int length, block_tokens;
  bool values_in_keys;
};
const AttentionCase kAttentionCases[] = {
    {{.heads = 4, .kv_heads = 2, .qk_dim = 32, .v_dim = 32, .scale = 0.3f}, 140, 16, false},
    {{.heads = 2, .kv_heads = 2, .qk_dim = 20, .v_dim = 12, .scale = 1.0f}, 1100, 16, false},
    {{.heads = 10, .kv_heads = 1, .qk_dim = 72, .v_dim = 64, .scale = 0.2f}, 70, 7, true},
    {{.heads = 3, .kv_heads = 1, .qk_dim = 7, .v_dim = 5, .scale = 2.0f}, 600, 64, false},
    {{.heads = 1, .kv_heads = 1, .qk_dim = 1, .v_dim = 1, .scale = 1.0f}, 3, 1, false},
};

TEST_P(AttentionConformance, MatchesTheReference) {
  KernelContext ctx(2);
  for (const AttentionCase& c : kAttentionCases) {
    for (const DType dtype : kDTypes) {
      SCOPED_TRACE(testing::Message() << c.shape.qk_dim << " " << Name(dtype));
      Make(c.shape, dtype, c.length, c.block_tokens, c.values_in_keys);
      Poisoned out(c.length, out_cols()), expected(c.length, out_cols());
      Run(set_, ctx, 0, c.length, out.matrix);
      Run(reference_, ctx, 0, c.length, expected.matrix);
      ExpectNear(out.matrix, expected.matrix, 1e-5f);
      EXPECT_TRUE(out.GapsAreUntouched());
    }
  }
}

TEST_P(AttentionConformance, RowsDoNotDependOnChunksOrThreads) {
  KernelContext one(1), three(3);
  for (const AttentionCase& c : kAttentionCases) {
    for (const DType dtype : kDTypes) {
      SCOPED_TRACE(testing::Message() << c.shape.qk_dim << " " << Name(dtype));
      Make(c.shape, dtype, c.length, c.block_tokens, c.values_in_keys);
      Poisoned whole(c.length, out_cols()), chunks(c.length, out_cols());
      Run(set_, three, 0, c.length, whole.matrix);
      // Chunks of 1 (decode), 2, 4, … rows.
      for (int begin = 0, count = 1; begin < c.length; begin += count, count = 2 * count % 255) {
        count = std::min(count, c.length - begin);
        Run(set_, one, begin, count, chunks.matrix);
      }
      for (int r = 0; r < c.length; ++r) {
        ASSERT_TRUE(SameBits(whole.matrix.row(r), chunks.matrix.row(r), out_cols())) << r;
      }
    }
  }
}

TEST_P(AttentionConformance, RowsDoNotDependOnTheBatch) {
  // A mixed batch of pieces of one sequence, rows out of order, equals the whole.
  KernelContext ctx(2);
  const AttentionCase& c = kAttentionCases[1];
  Make(c.shape, DType::kBfloat16, c.length, c.block_tokens, c.values_in_keys);
  Poisoned whole(c.length, out_cols()), mixed(c.length, out_cols());
  Run(set_, ctx, 0, c.length, whole.matrix);
  const std::vector<AttentionSequence> batch = {
      {.first_row = 800, .count = 1, .first_position = 800, .blocks = blocks_},
      {.first_row = 3, .count = 130, .first_position = 3, .blocks = blocks_},
      {.first_row = 900, .count = 0, .first_position = 900, .blocks = blocks_},
      {.first_row = 1099, .count = 1, .first_position = 1099, .blocks = blocks_},
      {.first_row = 500, .count = 30, .first_position = 500, .blocks = blocks_}};
  set_.attention->PagedAttention(ctx, shape_, addressing_, cache_.data(), batch, View(q_, q_cols()),
                                 mixed.matrix);
  int rows = 0;
  for (int r = 0; r < c.length; ++r) {
    if (std::isnan(mixed.matrix(r, 0))) continue;
    ++rows;
    EXPECT_TRUE(SameBits(whole.matrix.row(r), mixed.matrix.row(r), out_cols())) << r;
  }
  EXPECT_EQ(rows, 162);
}

TEST_P(AttentionConformance, LaterPositionsOfAChunkDoNotTouchEarlierRows) {
  KernelContext ctx(1);
  for (const AttentionCase& c : kAttentionCases) {
    if (c.length < 70) continue;
    Make(c.shape, DType::kBfloat16, c.length, c.block_tokens, c.values_in_keys);
    Poisoned clean(c.length, out_cols()), spoilt(c.length, out_cols());
    Run(set_, ctx, 0, c.length, clean.matrix);
    const int from = c.length - 5;
    for (int p = from; p < c.length; ++p) {
      for (size_t i = 0; i + 3 < addressing_.k_token_stride; ++i) Put(TokenOffset(p) + i, kNan);
    }
    Run(set_, ctx, 0, c.length, spoilt.matrix);
    for (int r = 0; r < from; ++r) {
      ASSERT_TRUE(SameBits(clean.matrix.row(r), spoilt.matrix.row(r), out_cols())) << r;
    }
    EXPECT_TRUE(std::isnan(spoilt.matrix(from, 0)));
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

const char* const kSets[] = {"reference", "avx2", "avx512", "avx512_bf16"};
std::string NameOf(const testing::TestParamInfo<const char*>& info) { return info.param; }
INSTANTIATE_TEST_SUITE_P(Sets, Conformance, testing::ValuesIn(kSets), NameOf);
INSTANTIATE_TEST_SUITE_P(Sets, ExpertConformance, testing::ValuesIn(kSets), NameOf);
INSTANTIATE_TEST_SUITE_P(Sets, AttentionConformance, testing::ValuesIn(kSets), NameOf);

// ---- Choice ----

TEST(KernelSetTest, NamesAreKnownAvailableOrMissing) {
  std::vector<std::string> names = MissingKernels();
  const std::vector<KernelSet> available = AvailableKernels();
  EXPECT_EQ(available.front().name, "reference");
  EXPECT_EQ(SelectKernels("auto")->name, available.back().name);
  for (const KernelSet& set : available) {
    EXPECT_EQ(SelectKernels(set.name)->name, set.name);
    names.push_back(set.name);
  }
  for (const std::string& missing : MissingKernels()) {
    const absl::Status status = SelectKernels(missing).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_NE(std::string(status.message()).find("reference"), std::string::npos);
  }
  EXPECT_EQ(names.size(), std::size(kSets));
  const absl::Status unknown = SelectKernels("mmx").status();
  EXPECT_EQ(unknown.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(std::string(unknown.message()).find("mmx"), std::string::npos);
  EXPECT_NE(std::string(unknown.message()).find("auto, reference"), std::string::npos);
}

}  // namespace
}  // namespace switchyard
