#include "model/cuda/kv_image.h"

#include <gtest/gtest.h>

#include <random>

namespace switchyard::cuda {
namespace {

using Runs = std::vector<BlockRun>;

TEST(KvImageTest, RunsAreJoinedAndSorted) {
  EXPECT_EQ(RunsOf({}), Runs());
  EXPECT_EQ(RunsOf({7, 3, 4, 3, 9, 8}), (Runs{{3, 2}, {7, 3}}));
}

TEST(KvImageTest, RangesAreCutAtChunks) {
  using Ranges = std::vector<ByteRange>;
  EXPECT_EQ(CutAt(100, {30, 0}), Ranges());
  EXPECT_EQ(CutAt(100, {30, 70}), (Ranges{{30, 70}}));
  EXPECT_EQ(CutAt(100, {30, 171}), (Ranges{{30, 70}, {100, 100}, {200, 1}}));
}

TEST(KvImageTest, TailsAreOfSequencesThatEndInsideABlock) {
  const int32_t blocks[] = {6, 2, 3};
  const AttentionSequence inside{0, 2, 3, blocks}, at_its_end{2, 5, 3, blocks},
      one{7, 1, 8, blocks};
  EXPECT_EQ(TailsOf(std::vector{inside, at_its_end, one}, 4),
            (std::vector<BlockTail>{{2, 1}, {3, 1}}));
}

TEST(KvImageTest, ABlockFromOutsideIsUploadedOnceBeforeItsFirstUse) {
  KvImage image(8, 16);
  const BlockId from_outside[] = {BlockId(2), BlockId(5)};
  image.HostWrote(from_outside);
  const int32_t mine[] = {5, 1}, others[] = {0, 3};
  const AttentionSequence adopted{0, 1, 20, mine}, other{1, 1, 17, others};
  EXPECT_EQ(image.TakeUploads({&other, 1}), Runs());
  EXPECT_EQ(image.TakeUploads({&adopted, 1}), (Runs{{5, 1}}));
  EXPECT_EQ(image.TakeUploads({&adopted, 1}), Runs());
  // Nothing in a block that a sequence only begins is its own.
  const AttentionSequence begins{0, 4, 16, mine};
  const BlockId left_there[] = {BlockId(1)};
  image.HostWrote(left_there);
  EXPECT_EQ(image.TakeUploads({&begins, 1}), Runs());
  const AttentionSequence goes_on{0, 1, 20, mine};
  EXPECT_EQ(image.TakeUploads({&goes_on, 1}), Runs());
}

TEST(KvImageTest, WhatIsWrittenIsFetchedAgainAndWhatIsNotIsNot) {
  KvImage image(8, 4);
  const int32_t blocks[] = {6, 2, 3};
  const AttentionSequence first{0, 6, 0, blocks}, second{0, 3, 6, blocks};
  image.DeviceWrites({&first, 1});
  EXPECT_EQ(image.TakeDownloads({&first, 1}), (Runs{{2, 1}, {6, 1}}));
  image.DeviceWrites({&second, 1});  // positions 6, 7 of block 2 and 8 of block 3
  EXPECT_EQ(image.TakeDownloads({&second, 1}), (Runs{{2, 2}}));
}

TEST(KvImageTest, APrefixThatAnotherRequestLeftOnTheDeviceIsFetchedWithTheFirstChunk) {
  KvImage image(8, 4);
  const int32_t blocks[] = {1, 4};
  const AttentionSequence decoded{0, 4, 0, blocks}, sent{0, 2, 4, blocks};
  image.DeviceWrites({&decoded, 1});  // nobody wanted its bytes
  image.DeviceWrites({&sent, 1});
  EXPECT_EQ(image.TakeDownloads({&sent, 1}), (Runs{{1, 1}, {4, 1}}));
}

TEST(KvImageTest, WhatAFailedStepDidNotFetchIsFetchedByTheNext) {
  KvImage image(8, 4);
  const int32_t blocks[] = {1, 4, 5};
  const AttentionSequence s{0, 1, 9, blocks};
  const Runs runs = image.TakeDownloads({&s, 1});
  EXPECT_EQ(runs, (Runs{{1, 1}, {4, 2}}));
  image.NotDownloaded(runs);
  EXPECT_EQ(image.TakeDownloads({&s, 1}), runs);
}

// Whatever the order of writes and wishes: after TakeDownloads the host has what the device wrote
// last.
TEST(KvImageTest, RandomStepsLeaveNoOldBytes) {
  std::mt19937 random(7);
  constexpr int kBlocks = 24, kTokens = 4;
  KvImage image(kBlocks, kTokens);
  std::vector<int> device(kBlocks, 0), host(kBlocks, -1);  // versions
  for (int step = 1; step < 3000; ++step) {
    std::vector<int32_t> table(kBlocks);
    for (int i = 0; i < kBlocks; ++i) table[i] = i;
    std::shuffle(table.begin(), table.end(), random);
    const int position = static_cast<int>(random() % 60),
              count = 1 + static_cast<int>(random() % 20);
    const AttentionSequence s{0, count, position, table};
    if (random() % 4 == 0) {
      const BlockId outside[] = {BlockId(table[0])};
      host[table[0]] = step;
      image.HostWrote(outside);
    }
    if (random() % 4 == 0) image.NotUploaded(image.TakeUploads({&s, 1}));  // the step ends there
    for (const auto& [begin, n] : image.TakeUploads({&s, 1})) {
      for (int32_t b = begin; b < begin + n; ++b) device[b] = host[b];
    }
    image.DeviceWrites({&s, 1});
    for (int i = position / kTokens; i <= (position + count - 1) / kTokens; ++i) {
      device[table[i]] = step;
    }
    if (random() % 2 == 0) continue;
    for (const auto& [begin, n] : image.TakeDownloads({&s, 1})) {
      for (int32_t b = begin; b < begin + n; ++b) host[b] = device[b];
    }
    for (int i = 0; i <= (position + count - 1) / kTokens; ++i) {
      ASSERT_EQ(host[table[i]], device[table[i]]) << "step " << step << ", block " << table[i];
    }
  }
}

}  // namespace
}  // namespace switchyard::cuda
