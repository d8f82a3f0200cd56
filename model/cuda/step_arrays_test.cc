#include "model/cuda/step_arrays.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <vector>

namespace switchyard::cuda {
namespace {

const int32_t kTokens[] = {7, 8, 9, 4}, kFirstBlocks[] = {5, 2}, kSecondBlocks[] = {1, 0, 6};
const AttentionSequence kSequences[] = {{0, 3, 15, kFirstBlocks}, {3, 1, 40, kSecondBlocks}};
const int32_t kLogitRows[] = {2, 3};
const ForwardBatch kBatch{.tokens = kTokens, .sequences = kSequences, .logit_rows = kLogitRows};

std::vector<int32_t> Ints(const int32_t* data, int count) { return {data, data + count}; }

TEST(StepArraysTest, ShapeSaysWhatIsLaunched) {
  const StepShape shape = ShapeOf(kBatch);
  EXPECT_EQ(shape, (StepShape{4, 2, 2, 3, 41}));
  EXPECT_FALSE(IsDecode(shape));
  EXPECT_TRUE(IsDecode({3, 3, 3, 1, 9}));
  EXPECT_FALSE(IsDecode({3, 3, 2, 1, 9}));
  EXPECT_FALSE(IsDecode({}));
}

TEST(StepArraysTest, ClassesAreFewAndHoldTheStep) {
  std::vector<StepShape> classes;
  for (int rows = 1; rows <= 100; ++rows) {
    for (int context = 1; context <= 3000; context += 7) {
      const StepShape exact{rows, rows, rows, 1, context};
      const StepShape c = DecodeClass(exact, 100, 3000);
      EXPECT_GE(c.rows, rows);
      EXPECT_LE(c.rows, 100);
      EXPECT_GE(c.context_max, context);
      EXPECT_LE(c.context_max, 3000);
      EXPECT_EQ(c.sequences, c.rows);
      EXPECT_EQ(c.logit_rows, c.rows);
      if (std::find(classes.begin(), classes.end(), c) == classes.end()) classes.push_back(c);
    }
  }
  EXPECT_EQ(classes.size(), 8u * 4u);  // 1, 2, … 64, 100 rows; 512, 1024, 2048, 3000 tokens
}

TEST(StepArraysTest, LongContextsAreSharedWhereThereIsRoom) {
  const AttentionShape mla{.heads = 128, .kv_heads = 1, .qk_dim = 576, .v_dim = 512};
  const auto bytes = [&](int rows, int context, size_t room) {
    return SplitBytes({rows, rows, rows, 1, context}, mla, DType::kBfloat16, room);
  };
  constexpr size_t kRow = size_t{128} * (512 + 2) * sizeof(float);  // of one segment
  EXPECT_EQ(bytes(64, 131072, SIZE_MAX), 256 * 64 * kRow);
  EXPECT_EQ(bytes(4, 1024, 8 * kRow), 8 * kRow);
  EXPECT_EQ(bytes(4, 1024, 8 * kRow - 1), 0u);
  EXPECT_EQ(bytes(4, 512, SIZE_MAX), 0u) << "one segment";
  EXPECT_EQ(SplitBytes({4, 4, 4, 1, 1024}, mla, DType::kFloat32, SIZE_MAX), 0u);
  EXPECT_EQ(SplitBytes({8, 4, 4, 2, 1024}, mla, DType::kBfloat16, SIZE_MAX), 0u) << "a chunk";
}

TEST(StepArraysTest, ARecordedStepsPaddingHasNoSlotsAndNoRows) {
  const int groups = 3, tables = TablesOf(kBatch);
  const StepLimits limits{
      .rows = 8, .sequences = 8, .tables = tables, .logit_rows = 8, .groups = groups};
  std::vector<std::byte> memory(BytesFor(limits) + 256, std::byte{0xff});
  std::byte* const base = memory.data() + (256 - reinterpret_cast<uintptr_t>(memory.data()) % 256);
  const StepArrays a = PlaceArrays(base, limits);
  StepShape shape = ShapeOf(kBatch);
  shape.rows = shape.sequences = shape.logit_rows = 8;
  SamplingParams params;
  params.temperature = 0.5f;
  params.sample = 2;
  const Draw draws[] = {{}, {&params, 41}};
  ForwardBatch batch = kBatch;
  batch.draws = draws;
  FillArrays(batch, 16, groups, shape, a);

  EXPECT_EQ(Ints(a.tokens, 8), (std::vector<int32_t>{7, 8, 9, 4, 0, 0, 0, 0}));
  EXPECT_EQ(Ints(a.positions, 8), (std::vector<int32_t>{15, 16, 17, 40, 0, 0, 0, 0}));
  EXPECT_EQ((std::vector<int64_t>{a.slots, a.slots + 8}),
            (std::vector<int64_t>{5 * 16 + 15, 2 * 16, 2 * 16 + 1, 6 * 16 + 8, -1, -1, -1, -1}));
  EXPECT_EQ(Ints(a.tables, tables), (std::vector<int32_t>{5, 2, 1, 0, 6}));
  EXPECT_EQ(a.sequences[1].table_offset, 2);
  EXPECT_EQ(a.sequences[1].first_position, 40);
  for (int i = 2; i < 8; ++i) EXPECT_EQ(a.sequences[i].count, 0);
  EXPECT_EQ(Ints(a.logit_rows, 8), (std::vector<int32_t>{2, 3, 0, 0, 0, 0, 0, 0}));
  EXPECT_EQ(a.sampling[0].temperature, 0.0f);
  EXPECT_EQ(a.sampling[1].temperature, 0.5f);
  EXPECT_EQ(a.sampling[1].position, 41u);
  EXPECT_EQ(a.sampling[1].sample, 2u);
  EXPECT_EQ(Ints(a.group_rows, groups), (std::vector<int32_t>{8, 8, 8}));

  // What is copied to the device is what was filled.
  std::vector<std::byte> copied(BytesFor(limits), std::byte{0xff});
  const auto copy = [&](size_t at, size_t bytes) {
    std::memcpy(copied.data() + at, base + at, bytes);
    return absl::OkStatus();
  };
  ASSERT_TRUE(ForFilled(a, base, shape, tables, groups, copy).ok());
  EXPECT_EQ(std::memcmp(copied.data(), base, copied.size()), 0);
}

}  // namespace
}  // namespace switchyard::cuda
