// Ranks as threads that write into each other's windows, by the kernels that devices run.
#include "model/cuda/peer_lane.h"

#include <gtest/gtest.h>

#include <array>
#include <random>
#include <thread>

#include "common/check.h"

namespace switchyard::cuda {
namespace {

constexpr size_t kRow = 32;
constexpr absl::Duration kLong = absl::Seconds(600);

template <typename T>
T OrDie(absl::StatusOr<T> value) {
  SY_CHECK_MSG(value.ok(), value.status().ToString());
  return *std::move(value);
}

// [from][to]: rows of one exchange.
using Counts = std::vector<std::vector<int>>;

class PeerLaneTest : public ::testing::Test {
 protected:
  static constexpr int kRanks = 3;

  // All but `absent` open an epoch.
  void Begin(uint64_t epoch, int absent = -1) {
    std::vector<std::optional<PeerHandle>> windows(kRanks);
    for (int r = 0; r < kRanks; ++r) {
      if (r != absent) windows[r] = OrDie(lanes_[r].Prepare({.ranks = kRanks, .slot_bytes = 256}));
    }
    for (int r = 0; r < kRanks; ++r) {
      if (r == absent) continue;
      auto others = windows;
      others[r].reset();
      const absl::Status opened = lanes_[r].Open(r, epoch, others);
      ASSERT_TRUE(opened.ok()) << opened;
    }
  }

  // What rank `from` sends `to` in exchange `number`.
  static std::byte Value(int from, int to, int number, size_t i) {
    return std::byte(from * 71 + to * 29 + number * 13 + static_cast<int>(i % 251));
  }

  // Rank r's part. True if all that came is right.
  absl::StatusOr<bool> Exchange(int r, const Counts& counts, int number, absl::Duration wait_max) {
    BlockFirsts from = {0}, to = {0};
    std::vector<std::byte> sent, wanted;
    for (int p = 0; p < kRanks; ++p) {
      const int out = p == r ? 0 : counts[r][p], in = p == r ? 0 : counts[p][r];
      from.push_back(from.back() + out);
      to.push_back(to.back() + in);
      for (size_t i = 0; i < out * kRow; ++i) sent.push_back(Value(r, p, number, i));
      for (size_t i = 0; i < in * kRow; ++i) wanted.push_back(Value(p, r, number, i));
    }
    DeviceBuffer out = OrDie(DeviceBuffer::Create(sent.size() + 1)),
                 in = OrDie(DeviceBuffer::Create(wanted.size() + 1));
    std::copy(sent.begin(), sent.end(), out.data());
    const absl::Status done = lanes_[r].Exchange(out.data(), from, in.data(), to, kRow,
                                                 {.wait_max = wait_max, .ctas = 2}, stream_);
    if (!done.ok()) return done;
    const absl::Status state = lanes_[r].status();
    if (!state.ok()) return state;
    return std::equal(wanted.begin(), wanted.end(), in.data());
  }

  const OwnedStream stream_;
  std::array<PeerLane, kRanks> lanes_;
};

TEST_F(PeerLaneTest, RowsComeToTheirPlacesInEveryEpoch) {
  std::mt19937 rng(11);
  for (uint64_t epoch = 1; epoch <= 3; ++epoch) {
    Begin(epoch);
    // Slots of 8 rows: up to three pieces a pair, none where both have nothing.
    std::vector<Counts> rounds(6, Counts(kRanks, std::vector<int>(kRanks)));
    for (Counts& counts : rounds) {
      for (auto& row : counts) {
        for (int& n : row) n = rng() % 3 == 0 ? 0 : static_cast<int>(rng() % 24);
      }
    }
    std::vector<std::thread> threads;
    for (int r = 0; r < kRanks; ++r) {
      threads.emplace_back([&, r] {
        for (size_t n = 0; n < rounds.size(); ++n) {
          const auto right = Exchange(r, rounds[n], static_cast<int>(n), kLong);
          EXPECT_TRUE(right.ok() && *right) << "rank " << r << ", " << right.status();
        }
      });
    }
    for (std::thread& t : threads) t.join();
    for (PeerLane& lane : lanes_) lane.Close();
  }
}

TEST_F(PeerLaneTest, WhoWaitsForARankThatIsGoneIsToldAndTheNextEpochIsClean) {
  const Counts counts(kRanks, std::vector<int>(kRanks, 5));
  Begin(1);
  // Rank 2 does not come. Rank 0 has what rank 1 sent, and waits in vain for the other.
  const absl::Duration soon = absl::Milliseconds(20);
  for (const int r : {1, 0}) {
    const auto right = Exchange(r, counts, 0, soon);
    EXPECT_TRUE(absl::IsUnavailable(right.status())) << right.status();
  }
  EXPECT_EQ(lanes_[0].status().message(), "the rows of rank 2 have not come");
  // What follows does not wait any more.
  EXPECT_TRUE(absl::IsUnavailable(Exchange(0, counts, 1, kLong).status()));
  for (const int r : {0, 1}) lanes_[r].Close();
  // It was only slow: it writes into windows of an epoch that is over.
  EXPECT_TRUE(Exchange(2, counts, 0, soon).ok()) << "the others' rows of old are still there";
  lanes_[2].Close();

  for (const int absent : {2, -1}) {  // two go on, then all
    Begin(absent == 2 ? 2 : 3, absent);
    Counts present = counts;
    if (absent >= 0) {
      for (auto& row : present) row[absent] = 0;
      present[absent].assign(kRanks, 0);
    }
    std::vector<std::thread> threads;
    for (int r = 0; r < kRanks; ++r) {
      if (r == absent) continue;
      threads.emplace_back([&, r] {
        for (int n = 7; n < 10; ++n) {
          const auto right = Exchange(r, present, n, kLong);
          EXPECT_TRUE(right.ok() && *right) << "rank " << r << ", " << right.status();
        }
      });
    }
    for (std::thread& t : threads) t.join();
    for (PeerLane& lane : lanes_) lane.Close();
  }
}

TEST_F(PeerLaneTest, EndsThatHavePlannedOtherwiseDoNotMistakeEachOther) {
  Begin(1, 2);
  Counts five(kRanks, std::vector<int>(kRanks)), six = five;
  five[0][1] = 5;
  six[0][1] = 6;
  EXPECT_TRUE(Exchange(0, six, 0, absl::Milliseconds(1)).status().code() ==
              absl::StatusCode::kUnavailable);  // rank 1 has not come yet
  EXPECT_TRUE(absl::IsUnavailable(Exchange(1, five, 0, absl::Milliseconds(20)).status()));
}

}  // namespace
}  // namespace switchyard::cuda
