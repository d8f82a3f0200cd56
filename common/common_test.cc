#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cmath>
#include <cstring>
#include <fstream>
#include <limits>
#include <thread>

#include "common/bf16.h"
#include "common/checked_math.h"
#include "common/compute_pool.h"
#include "common/file.h"
#include "common/ids.h"
#include "common/mailbox.h"
#include "common/philox.h"
#include "common/tensor_view.h"

namespace switchyard {
namespace {

TEST(Bf16Test, RoundsToNearestEvenAndKeepsSpecials) {
  EXPECT_EQ(ToBf16(1.0f).bits, 0x3f80);
  EXPECT_EQ(ToBf16(1.00390625f).bits, 0x3f80);  // halfway: to even
  EXPECT_EQ(ToBf16(1.01171875f).bits, 0x3f82);  // halfway: to even, upwards
  EXPECT_EQ(ToBf16(std::nextafter(1.00390625f, 2.f)).bits, 0x3f81);
  EXPECT_TRUE(std::isnan(ToFloat(ToBf16(std::numeric_limits<float>::quiet_NaN()))));
  EXPECT_EQ(ToFloat(ToBf16(-INFINITY)), -INFINITY);
  EXPECT_EQ(ToBf16(-0.0f).bits, 0x8000);
}

// Known answers of Random123's kat_vectors for philox4x32-10.
TEST(PhiloxTest, MatchesKnownAnswers) {
  EXPECT_EQ(Philox4x32(0, {0, 0, 0, 0}),
            (std::array<uint32_t, 4>{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(Philox4x32(0xffffffffffffffffull, {~0u, ~0u, ~0u, ~0u}),
            (std::array<uint32_t, 4>{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
}

TEST(ComputePoolTest, RunsEveryTaskOnce) {
  for (int threads : {1, 2, 5}) {
    ComputePool pool(threads);
    for (int round = 0; round < 2000; ++round) {
      std::vector<std::atomic<int>> hits(round % 37);
      pool.ParallelFor(hits.size(), [&](size_t i, int t) {
        ASSERT_LT(t, threads);
        hits[i].fetch_add(1);
      });
      for (auto& h : hits) ASSERT_EQ(h.load(), 1);
    }
  }
}

TEST(ComputePoolTest, RangesCoverEveryItemOnce) {
  ComputePool pool(3);
  for (const size_t count : {0, 1, 2, 7, 1000}) {
    for (const size_t cost : {1, 1000, 1000000}) {
      std::vector<std::atomic<int>> hits(count);
      std::atomic<int> calls{0};
      pool.ForRanges(count, cost, [&](size_t begin, size_t end, int) {
        ASSERT_LT(begin, end);
        ++calls;
        for (size_t i = begin; i < end; ++i) ++hits[i];
      });
      for (auto& h : hits) ASSERT_EQ(h.load(), 1);
      EXPECT_EQ(calls > 1, count > 1 && count * cost > 1 << 14) << count << " of " << cost;
    }
  }
}

TEST(MailboxTest, IsBoundedOrderedAndClosable) {
  Mailbox<int> box(2);
  EXPECT_TRUE(box.Post(1));
  EXPECT_TRUE(box.Post(2));
  EXPECT_FALSE(box.Post(3));
  EXPECT_EQ(box.Take(absl::ZeroDuration()), (std::vector<int>{1, 2}));
  std::thread taker([&] { EXPECT_TRUE(box.Take(absl::Seconds(20)).empty()); });
  box.Close();
  taker.join();
  EXPECT_FALSE(box.Post(4));
}

TEST(CheckedMathTest, RefusesOverflow) {
  EXPECT_EQ(CheckedProduct({3, 4, 5}), 60u);
  EXPECT_EQ(CheckedProduct({1ull << 40, 1ull << 40}), std::nullopt);
  EXPECT_EQ(CheckedSum(~0ull, 1), std::nullopt);
}

TEST(FileTest, NamesTheMissingPath) {
  const auto file = MappedFile::Open("/does/not/exist");
  EXPECT_EQ(file.status().code(), absl::StatusCode::kNotFound);
  EXPECT_NE(file.status().message().find("/does/not/exist"), std::string::npos);
}

TEST(FileTest, WritesThroughLinksAndToDevices) {
  const std::string target = testing::TempDir() + "/target", link = testing::TempDir() + "/link";
  unlink(link.c_str());
  ASSERT_EQ(symlink(target.c_str(), link.c_str()), 0);
  ASSERT_TRUE(WriteFileAtomically(link, "through").ok());
  EXPECT_EQ(ReadFile(target, 100).value_or(""), "through");
  EXPECT_EQ(WriteFileAtomically("/dev/full", "x").code(), absl::StatusCode::kResourceExhausted);
  struct stat st;
  ASSERT_EQ(lstat("/dev/full", &st), 0);
  EXPECT_TRUE(S_ISCHR(st.st_mode));
}

TEST(FileTest, ReleasedPagesAreNotThisProcesss) {
  const auto resident_file_pages = [] {
    long size = 0, resident = 0, shared = 0;
    std::ifstream("/proc/self/statm") >> size >> resident >> shared;
    return shared;
  };
  const std::string path = testing::TempDir() + "/released", text(8 << 20, 'x');
  ASSERT_TRUE(WriteFileAtomically(path, text).ok());
  const auto file = MappedFile::Open(path);
  ASSERT_TRUE(file.ok()) << file.status();
  const auto is_text = [&] {
    return std::memcmp(file->bytes().data(), text.data(), text.size()) == 0;
  };
  ASSERT_TRUE(is_text());
  const long before = resident_file_pages();
  file->Release();
  EXPECT_LE(resident_file_pages(), before - 1500) << "of 2,048 pages";
  EXPECT_TRUE(is_text()) << "read again";
}

}  // namespace
}  // namespace switchyard
