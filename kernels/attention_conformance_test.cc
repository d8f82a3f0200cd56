// Attention of every kernel set, against the reference and against itself: memory of the cache that
// a row must not use is NaN, and a row's bits may not depend on chunks, batch or threads.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "kernels/conformance.h"

namespace switchyard {
namespace {

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
  bool values_in_keys = false;
};
const AttentionCase kAttentionCases[] = {
    {{.heads = 4, .kv_heads = 2, .qk_dim = 32, .v_dim = 32, .scale = 0.3f}, 140, 16, false},
    {{.heads = 2, .kv_heads = 2, .qk_dim = 20, .v_dim = 12, .scale = 1.0f}, 1060, 16, false},
    {{.heads = 10, .kv_heads = 1, .qk_dim = 72, .v_dim = 64, .scale = 0.2f}, 70, 7, true},
    {{.heads = 3, .kv_heads = 1, .qk_dim = 7, .v_dim = 5, .scale = 2.0f}, 600, 64, false},
    {{.heads = 1, .kv_heads = 1, .qk_dim = 1, .v_dim = 1, .scale = 1.0f}, 3, 1, false},
    {{.heads = 4, .kv_heads = 2, .qk_dim = 16, .v_dim = 18, .scale = 0.4f, .window = 37}, 160, 16},
    {{.heads = 2, .kv_heads = 1, .qk_dim = 9, .v_dim = 8, .scale = 0.7f, .window = 530}, 1100, 16},
    {{.heads = 3, .kv_heads = 3, .qk_dim = 8, .v_dim = 8, .scale = 1.0f, .window = 1}, 70, 4},
    // The widths of DeepSeek-V2 and V3, absorbed and as they are.
    {{.heads = 3, .kv_heads = 1, .qk_dim = 576, .v_dim = 512, .scale = 0.04f}, 70, 16, true},
    {{.heads = 2, .kv_heads = 2, .qk_dim = 192, .v_dim = 256, .scale = 0.07f}, 70, 16},
};

TEST_P(AttentionConformance, MatchesTheReference) {
  KernelContext ctx(2);
  for (const AttentionCase& c : kAttentionCases) {
    for (const DType dtype : kDTypes) {
      SCOPED_TRACE(testing::Message() << c.shape.qk_dim << " " << Name(dtype));
      Make(c.shape, dtype, c.length, c.block_tokens, c.values_in_keys);
      Poisoned out(c.length, out_cols()), expected(c.length, out_cols());
      // The first rows and the last: the reference takes its time.
      const int rows = std::min(c.length, 70), last = c.length - rows;
      for (const int begin : {0, last}) {
        Run(set_, ctx, begin, rows, out.matrix);
        Run(reference_, ctx, begin, rows, expected.matrix);
        // The reference rounds its weights against another maximum: half of 2^-8 each.
        ExpectNear(out.matrix.Slice(begin, rows), expected.matrix.Slice(begin, rows),
                   dtype == DType::kBfloat16 ? 4e-3f : 1e-5f);
      }
      EXPECT_TRUE(out.GapsAreUntouched());
    }
  }
}

TEST_P(AttentionConformance, RowsDoNotDependOnChunksOrThreads) {
  KernelContext one(1), three(3);
  for (const AttentionCase& c : kAttentionCases) {
    for (const DType dtype : kDTypes) {
      SCOPED_TRACE(testing::Message() << c.shape.qk_dim << " " << Name(dtype));
      // The reference takes its time, and so does CUDA where the host runs it.
      const int length = set_.name == "reference"        ? std::min(c.length, 100)
                         : set_.name.starts_with("cuda") ? std::min(c.length, 600)
                                                         : c.length;
      Make(c.shape, dtype, length, c.block_tokens, c.values_in_keys);
      Poisoned whole(length, out_cols()), chunks(length, out_cols());
      Run(set_, three, 0, length, whole.matrix);
      // Chunks of 1 (decode), 2, 4, … rows.
      for (int begin = 0, count = 1; begin < length; begin += count, count = 2 * count % 255) {
        count = std::min(count, length - begin);
        Run(set_, one, begin, count, chunks.matrix);
      }
      for (int r = 0; r < length; ++r) {
        ASSERT_TRUE(SameBits(whole.matrix.row(r), chunks.matrix.row(r), out_cols())) << r;
      }
    }
  }
}

TEST_P(AttentionConformance, RowsDoNotDependOnTheBatch) {
  // A mixed batch of pieces of one sequence, rows out of order, equals the whole.
  if (set_.name == "reference") GTEST_SKIP() << "it takes its time, and has one row per task";
  KernelContext ctx(2);
  const AttentionCase& c = kAttentionCases[1];
  Make(c.shape, DType::kBfloat16, c.length, c.block_tokens, c.values_in_keys);
  Poisoned whole(c.length, out_cols()), mixed(c.length, out_cols());
  Run(set_, ctx, 0, c.length, whole.matrix);
  const std::vector<AttentionSequence> batch = {
      {.first_row = 800, .count = 1, .first_position = 800, .blocks = blocks_},
      {.first_row = 3, .count = 130, .first_position = 3, .blocks = blocks_},
      {.first_row = 900, .count = 0, .first_position = 900, .blocks = blocks_},
      {.first_row = 1059, .count = 1, .first_position = 1059, .blocks = blocks_},
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

TEST_P(AttentionConformance, ALongRowDoesNotDependOnHowItIsCut) {
  // Over many segments, alone on many threads: each segment is a task of its own.
  if (set_.name == "reference") GTEST_SKIP() << "it has one row per task";
  KernelContext one(1), five(5);
  for (const DType dtype : kDTypes) {
    for (const int window : {0, 600, 3000}) {
      const int edge = set_.name.starts_with("cuda") ? 2048 : 4096, last = edge + 134;
      Make({.heads = 6, .kv_heads = 2, .qk_dim = 16, .v_dim = 20, .scale = 0.5f, .window = window},
           dtype, last + 1, 16, false);
      Poisoned whole(last + 1, out_cols()), cut(last + 1, out_cols());
      for (const int row : {last, edge, edge - 1, 513, 512, 511, 0}) {
        Run(set_, one, row, 1, whole.matrix);
        Run(set_, five, row, 1, cut.matrix);
        ASSERT_TRUE(SameBits(whole.matrix.row(row), cut.matrix.row(row), out_cols())) << row;
      }
    }
  }
}

TEST_P(AttentionConformance, LaterPositionsOfAChunkDoNotTouchEarlierRows) {
  KernelContext ctx(1);
  for (const AttentionCase& c : kAttentionCases) {
    if (c.length < 70 || c.length > 200) continue;
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

INSTANTIATE_TEST_SUITE_P(Sets, AttentionConformance, testing::ValuesIn(ConformanceNames()), NameOf);

}  // namespace
}  // namespace switchyard
