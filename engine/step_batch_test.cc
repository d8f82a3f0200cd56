#include "engine/step_batch.h"

#include <gtest/gtest.h>

#include <random>

namespace switchyard {
namespace {

constexpr BatchLimits kLimits = {
    .block_size = 16, .kv_blocks = 64, .rows = 32, .sequences = 4, .blocks_per_sequence = 8};

StepBatch Batch() {
  StepBatch b;
  b.tokens = {7, 8, 9, 10, 11};
  b.tables = {3, 1, 2};
  b.logit_rows = {2, 4};
  b.prompts = {18, 2};
  b.sequences = {{0, 3, 16, std::span(b.tables).first(2)}, {3, 2, 0, std::span(b.tables).last(1)}};
  return b;
}

std::vector<int32_t> Words(const StepBatch& b) {
  std::vector<int32_t> words;
  EncodeBatch(b, kLimits, &words);
  return words;
}

TEST(StepBatchTest, ArrivesAsItWas) {
  const StepBatch sent = Batch();
  StepBatch got;
  ASSERT_TRUE(DecodeBatch(Words(sent), kLimits, &got).ok());
  EXPECT_EQ(got.tokens, sent.tokens);
  EXPECT_EQ(got.logit_rows, sent.logit_rows);
  EXPECT_EQ(got.prompts, sent.prompts);
  ASSERT_EQ(got.sequences.size(), sent.sequences.size());
  for (size_t i = 0; i < got.sequences.size(); ++i) {
    const AttentionSequence &a = got.sequences[i], &b = sent.sequences[i];
    EXPECT_EQ(a.first_row, b.first_row);
    EXPECT_EQ(a.count, b.count);
    EXPECT_EQ(a.first_position, b.first_position);
    EXPECT_TRUE(std::equal(a.blocks.begin(), a.blocks.end(), b.blocks.begin(), b.blocks.end()));
  }
  EXPECT_LE(Words(sent).size(), kLimits.words());
}

TEST(StepBatchTest, NoRowsAreNoWords) {
  EXPECT_TRUE(Words({}).empty());
  StepBatch got = Batch();
  ASSERT_TRUE(DecodeBatch({}, kLimits, &got).ok());
  EXPECT_TRUE(got.tokens.empty() && got.sequences.empty());
}

TEST(StepBatchTest, OtherBlocksAreRefusedWithBothNumbers) {
  BatchLimits other = kLimits;
  other.block_size = 32;
  StepBatch got;
  const absl::Status s = DecodeBatch(Words(Batch()), other, &got);
  EXPECT_TRUE(absl::IsInvalidArgument(s));
  EXPECT_NE(s.message().find("block-size 16"), s.message().npos) << s;
  EXPECT_NE(s.message().find("block-size 32"), s.message().npos) << s;
}

// Whatever the words are: refused, or a batch whose rows and tables lie within it.
TEST(StepBatchTest, NoWordsReachBeyondThemselves) {
  std::mt19937 rng(1);
  const std::vector<int32_t> good = Words(Batch());
  int refused = 0;
  for (int i = 0; i < 20'000; ++i) {
    std::vector<int32_t> words = good;
    for (unsigned n = 1 + rng() % 3; n > 0; --n) {
      const int32_t values[] = {-1, 0, 1, 5, 6, 1 << 30, INT32_MIN, INT32_MAX};
      words[rng() % words.size()] = values[rng() % 8];
    }
    if (i % 4 == 0) words.resize(rng() % (good.size() + 8));
    StepBatch got;
    if (!DecodeBatch(words, kLimits, &got).ok()) {
      ++refused;
      continue;
    }
    size_t rows = 0, blocks = 0;
    for (const AttentionSequence& s : got.sequences) {
      ASSERT_EQ(s.first_row, static_cast<int32_t>(rows));
      rows += static_cast<size_t>(s.count);
      blocks += s.blocks.size();
    }
    ASSERT_LE(rows, got.tokens.size());
    ASSERT_LE(blocks, got.tables.size());
  }
  EXPECT_GT(refused, 10'000);
}

}  // namespace
}  // namespace switchyard
