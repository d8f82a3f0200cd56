// Ranks as threads of this process, by real UCX: whatever the group, the lane, the path and the
// placement, the sums are those of the loopback dispatcher to the last bit.
#include "moe/ep_dispatcher.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <atomic>
#include <utility>

#include "absl/time/clock.h"
#include "moe/ep_testing.h"

namespace switchyard {
namespace {

using namespace switchyard::testing;  // NOLINT: the vocabulary of this file

constexpr int kExperts = 12, kTopK = 4, kLayers = 3;

struct Case {
  std::string lane;
  int world = 2, redundant = 0, hidden = 40, max_tokens = 64, low_latency_tokens = 0;
  DType dtype = DType::kBfloat16;
  size_t ring_bytes = kEpRingBytesMin;
  EpOverlap overlap = EpOverlap::kOff;
  bool int8_tokens = false, reduced = false;
};

// What reduced outputs have to be: sums of sums of each rank, those as they travel.
std::vector<float> WantedReduced(const Tokens& t, const Placement& placement, int layer,
                                 const Case& c) {
  const RowCodec& codec = RowCodecOf(c.dtype);
  const auto width = static_cast<size_t>(c.hidden);
  std::vector<float> out(t.rows.size()), x(width), y(width), sum(width);
  std::vector<std::byte> row(width * SizeOf(c.dtype));
  for (size_t i = 0; i < t.count(); ++i) {
    TokenCodecOf(c.dtype, c.int8_tokens).keep(t.h().row(i), width, row.data());
    codec.decode(row.data(), width, x.data());
    bool first_rank = true;
    for (int rank = 0; rank < c.world; ++rank) {
      bool first = true;
      for (int k = 0; k < t.top_k; ++k) {
        const int32_t e = t.e()(i, k);
        if (placement.Choose(layer, e, t.positions[i]).rank.value() != rank) continue;
        for (size_t j = 0; j < width; ++j) {
          y[j] = x[j] * (static_cast<float>(e) + 1) + static_cast<float>(e);
        }
        codec.encode(y.data(), width, row.data());
        const std::byte* const output = row.data();
        const float weight = t.w()(i, k);
        codec.sum(!std::exchange(first, false), &weight, &output, 1, width, sum.data());
      }
      if (first) continue;
      codec.encode(sum.data(), width, row.data());
      const std::byte* const rounded = row.data();
      const float one = 1;
      codec.sum(!std::exchange(first_rank, false), &one, &rounded, 1, width,
                out.data() + i * width);
    }
  }
  return out;
}

std::vector<float> WantedOf(const Tokens& t, const Placement& placement, int layer, const Case& c) {
  if (c.reduced) return WantedReduced(t, placement, layer, c);
  return Wanted(t, kExperts, c.dtype, c.int8_tokens);
}

// Some rounds of dispatches, two in flight at a time, with any number of tokens per rank.
void ExpectRightBits(const Case& c, unsigned seed) {
  std::mt19937 rng(seed);
  const auto placement = std::make_shared<const Placement>(
      RandomPlacement(rng, kLayers, kExperts, c.redundant, c.world));
  const EpDispatcher::Options options = {.top_k = kTopK,
                                         .hidden = c.hidden,
                                         .max_tokens = c.max_tokens,
                                         .dtype = c.dtype,
                                         .int8_tokens = c.int8_tokens,
                                         .reduced = c.reduced,
                                         .low_latency_tokens = c.low_latency_tokens,
                                         .overlap = c.overlap};
  RunRanks(c.world,
           {.lanes = {c.lane}, .ring_bytes = EpDispatcher::RingBytes(options, c.ring_bytes)},
           [&](EpGroup& group, int rank) {
             auto dispatcher = EpDispatcher::Create(&group, placement, options);
             ASSERT_TRUE(dispatcher.ok()) << dispatcher.status();
             EpDispatcher& d = **dispatcher;
             std::mt19937 mine(seed * 100 + rank);
             for (int step = 0; step < 6; ++step) {
               // Every third time this rank has nothing.
               const size_t count = (step + rank) % 3 == 0 ? 0 : mine() % (c.max_tokens + 1);
               const Tokens a = RandomTokens(mine, count, kExperts, kTopK, c.hidden);
               const Tokens b = RandomTokens(mine, count / 2, kExperts, kTopK, c.hidden);
               auto headers = group.OpenStep({.rows = static_cast<uint32_t>(count)});
               ASSERT_TRUE(headers.ok()) << headers.status();
               d.BeginStep(*headers);
               const int layer = step % kLayers;
               auto ha = d.Send(layer, a.h(), a.e(), a.w(), a.positions);
               ASSERT_TRUE(ha.ok()) << ha.status();
               auto hb = d.Send(layer, b.h(), b.e(), b.w(), b.positions);
               ASSERT_TRUE(hb.ok()) << hb.status();
               auto ra = d.Receive(*ha);
               ASSERT_TRUE(ra.ok()) << ra.status();
               const Computed ya = Compute(d, layer, *ra);
               std::vector<float> out_a(a.rows.size(), NAN), out_b(b.rows.size(), NAN);
               ASSERT_TRUE(d.CombineSend(*ha, ya.rows, {out_a.data(), a.h().extents()}).ok());
               auto rb = d.Receive(*hb);
               ASSERT_TRUE(rb.ok()) << rb.status();
               const Computed yb = Compute(d, layer, *rb);
               ASSERT_TRUE(d.CombineReceive(*ha).ok());
               ASSERT_TRUE(d.CombineSend(*hb, yb.rows, {out_b.data(), b.h().extents()}).ok());
               ASSERT_TRUE(d.CombineReceive(*hb).ok());
               ASSERT_EQ(out_a, WantedOf(a, *placement, layer, c)) << "seed " << seed;
               ASSERT_EQ(out_b, WantedOf(b, *placement, layer, c)) << "seed " << seed;
             }
           });
}

class EpDispatcherTest : public ::testing::TestWithParam<std::string> {};

TEST_P(EpDispatcherTest, BitsAreTheLoopbacksWhateverTheGroup) {
  unsigned seed = 1;
  for (const int world : {1, 2, 4}) {
    for (const int redundant : {0, 4}) {
      for (const int low_latency : {0, 64}) {
        const DType dtype = seed % 2 == 0 ? DType::kFloat32 : DType::kBfloat16;
        ExpectRightBits({.lane = GetParam(),
                         .world = world,
                         .redundant = redundant,
                         .low_latency_tokens = low_latency,
                         .dtype = dtype},
                        seed++);
      }
    }
  }
}

// Plans without rows, between dispatches of both paths: what comes is what the peer has planned.
TEST_P(EpDispatcherTest, PlansGoAlone) {
  constexpr int kWorld = 3, kWidth = 40;
  std::mt19937 rng(4);
  const auto placement =
      std::make_shared<const Placement>(RandomPlacement(rng, kLayers, kExperts, 3, kWorld));
  const EpDispatcher::Options options = {
      .top_k = kTopK, .hidden = kWidth, .max_tokens = 64, .low_latency_tokens = 20};
  // Of rank `rank` in step `step`; every third time none.
  const auto tokens_of = [](int rank, int step) {
    std::mt19937 mine(rank * 100 + step);
    return RandomTokens(mine, (step + rank) % 3 * 16, kExperts, kTopK, kWidth);
  };
  RunRanks(kWorld,
           {.lanes = {GetParam()}, .ring_bytes = EpDispatcher::RingBytes(options, kEpRingBytesMin)},
           [&](EpGroup& group, int rank) {
             const auto d = EpDispatcher::Create(&group, placement, options).value();
             for (int step = 0; step < 4; ++step) {
               const Tokens t = tokens_of(rank, step);
               d->BeginStep(*group.OpenStep({.rows = static_cast<uint32_t>(t.count())}));
               for (int layer = 0; layer < kLayers; ++layer) {
                 const auto plans = d->ExchangePlans(layer, t.e(), t.positions);
                 ASSERT_TRUE(plans.ok()) << plans.status();
                 size_t tokens = 0;
                 for (int peer = 0; peer < kWorld; ++peer) {
                   const Tokens theirs = tokens_of(peer, step);
                   std::vector<RankPlan> wanted(kWorld);
                   std::vector<int32_t> rank_of;
                   MakePlans(*placement, layer, theirs.e(), theirs.positions, wanted, &rank_of);
                   EXPECT_EQ(plans->in[peer].counts, wanted[rank].counts);
                   EXPECT_EQ(plans->in[peer].slots, wanted[rank].slots);
                   tokens += wanted[rank].counts.size();
                 }
                 EXPECT_EQ(plans->grouping->tokens, tokens);
               }
               EXPECT_EQ(Exchange(*d, 0, t).value(), Wanted(t, kExperts, options.dtype));
             }
           });
}

TEST_P(EpDispatcherTest, TokensOf8BitsAndReducedOutputsAreWhatTheyHaveToBe) {
  // Two groups of 128 and a part of one, whose size is odd.
  Case c = {.lane = GetParam(), .redundant = 4, .hidden = 301, .int8_tokens = true};
  ExpectRightBits(c, 30);
  c.low_latency_tokens = 64;
  ExpectRightBits(c, 31);
  c.reduced = true;
  ExpectRightBits(c, 32);
  c.world = 4;
  c.low_latency_tokens = 0;
  c.overlap = EpOverlap::kOn;
  ExpectRightBits(c, 33);
  c.int8_tokens = false;
  c.dtype = DType::kFloat32;
  ExpectRightBits(c, 34);
  ExpectRightBits({.lane = GetParam(), .world = 1, .int8_tokens = true, .reduced = true}, 35);
  // Through rings of 128 KiB.
  ExpectRightBits(
      {.lane = GetParam(), .hidden = 2048, .max_tokens = 300, .int8_tokens = true, .reduced = true},
      36);
}

TEST_P(EpDispatcherTest, ADispatchMayBeManyTimesTheRing) {
  // 300 tokens of 4 KiB and four times as many outputs, through rings of 128 KiB.
  ExpectRightBits({.lane = GetParam(), .hidden = 2048, .max_tokens = 300}, 50);
  ExpectRightBits({.lane = GetParam(), .world = 4, .hidden = 1024, .max_tokens = 200}, 51);
}

TEST_P(EpDispatcherTest, BitsAreTheLoopbacksWhileFramesMoveInTheBackground) {
  unsigned seed = 70;
  for (const int world : {1, 2, 4}) {
    for (const int low_latency : {0, 64}) {
      ExpectRightBits({.lane = GetParam(),
                       .world = world,
                       .redundant = 4,
                       .hidden = 256,
                       .low_latency_tokens = low_latency,
                       .overlap = EpOverlap::kOn},
                      seed++);
    }
  }
}

// Two ranks exchange two micro-batches of many times the rings, and for `computing` nobody calls a
// dispatcher. Whether all had moved by then, so that neither waits for anything.
bool AllMovesWithin(absl::Duration computing, const std::string& lane) {
  constexpr size_t kTokens = 300, kWidth = 1024;
  std::mt19937 rng(8);
  const auto placement = std::make_shared<const Placement>(RandomPlacement(rng, 1, kExperts, 0, 2));
  const EpDispatcher::Options options = {.top_k = kTopK,
                                         .hidden = kWidth,
                                         .max_tokens = kTokens,
                                         .low_latency_tokens = 0,
                                         .overlap = EpOverlap::kOn};
  std::atomic<int> begun = 0, waited = 0;
  RunRanks(2, {.lanes = {lane}, .ring_bytes = EpDispatcher::RingBytes(options, kEpRingBytesMin)},
           [&](EpGroup& group, int rank) {
             const auto d = EpDispatcher::Create(&group, placement, options).value();
             std::mt19937 mine(rank);
             // One rank has a single row in one of its two halves.
             const Tokens a = RandomTokens(mine, rank == 0 ? kTokens : 1, kExperts, kTopK, kWidth);
             const Tokens b = RandomTokens(mine, rank == 0 ? kTokens : 0, kExperts, kTopK, kWidth);
             d->BeginStep(*group.OpenStep({.rows = static_cast<uint32_t>(a.count() + b.count())}));
             EXPECT_EQ(d->micro_batches(), 2);
             std::vector<float> out_a(a.rows.size(), NAN), out_b(b.rows.size(), NAN);
             const auto ha = d->Send(0, a.h(), a.e(), a.w(), a.positions).value();
             const auto hb = d->Send(0, b.h(), b.e(), b.w(), b.positions).value();
             const DispatchedRows ra = d->Receive(ha).value();
             const Computed ya = Compute(*d, 0, ra);
             ASSERT_TRUE(d->CombineSend(ha, ya.rows, {out_a.data(), a.h().extents()}).ok());
             // Both ranks "compute" at the same time.
             ++begun;
             while (begun < 2) absl::SleepFor(absl::Milliseconds(1));
             absl::SleepFor(computing);
             const absl::Duration before = d->waited().total();
             ASSERT_TRUE(d->CombineReceive(ha).ok());
             const DispatchedRows rb = d->Receive(hb).value();
             waited += d->waited().total() - before >= absl::Milliseconds(5);
             const Computed yb = Compute(*d, 0, rb);
             ASSERT_TRUE(d->CombineSend(hb, yb.rows, {out_b.data(), b.h().extents()}).ok());
             ASSERT_TRUE(d->CombineReceive(hb).ok());
             EXPECT_EQ(out_a, Wanted(a, kExperts, DType::kBfloat16));
             EXPECT_EQ(out_b, Wanted(b, kExperts, DType::kBfloat16));
             EXPECT_EQ(d->overlapped_steps(), 1u);
           });
  return waited == 0;
}

// Experts of the other micro-batch are computed meanwhile. On a busy machine that takes longer.
TEST_P(EpDispatcherTest, FramesMoveWhileTheCallerComputes) {
  for (const int seconds : {1, 4, 16}) {
    if (AllMovesWithin(absl::Seconds(seconds), GetParam()) || HasFatalFailure()) return;
  }
  ADD_FAILURE() << "ranks waited each time: nothing moves while they compute";
}

// Each rank sends each mate rows that say from whom, to whom and which they are; some send none.
TEST_P(EpDispatcherTest, ExchangesRowsWithinATensorGroup) {
  constexpr size_t kWidth = 96;
  std::mt19937 rng(4);
  const auto placement = std::make_shared<const Placement>(RandomPlacement(rng, 1, kExperts, 0, 4));
  const auto rows_of = [](int from, int to, int round) {
    return (from + 2 * to + round) % 3 == 0 ? size_t{0}
                                            : static_cast<size_t>((from + 1) * 150 + to + round);
  };
  const auto value = [](int from, int to, size_t row, size_t column) {
    return static_cast<float>(from * 1000 + to * 100) + static_cast<float>(row) +
           static_cast<float>(column) / 128;
  };
  for (const int size : {2, 4}) {
    const EpDispatcher::Options options = {
        .top_k = kTopK, .hidden = kWidth, .max_tokens = 9, .tensor_ranks = size};
    RunRanks(4, {.lanes = {GetParam()}, .ring_bytes = kEpRingBytesMin}, [&](EpGroup& group, int) {
      const auto d = EpDispatcher::Create(&group, placement, options).value();
      for (const DType wire : {DType::kFloat32, DType::kBfloat16}) {
        for (int round = 0; round < 3; ++round) {
          std::vector<std::vector<float>> out(size), in(size);
          std::vector<Matrix<const float>> to;
          std::vector<Matrix<float>> from;
          for (int r = 0; r < size; ++r) {
            const size_t sent = rows_of(d->rank(), r, round), got = rows_of(r, d->rank(), round);
            for (size_t i = 0; i < sent * kWidth; ++i) {
              out[r].push_back(value(d->rank(), r, i / kWidth, i % kWidth));
            }
            in[r].assign(got * kWidth, NAN);
            to.emplace_back(out[r].data(), std::array{sent, kWidth});
            from.emplace_back(in[r].data(), std::array{got, kWidth});
          }
          ASSERT_TRUE(d->Exchange(to, from, wire).ok());
          for (int r = 0; r < size; ++r) {
            for (size_t i = 0; r != d->rank() && i < in[r].size(); ++i) {
              const float wanted = value(r, d->rank(), i / kWidth, i % kWidth);
              ASSERT_EQ(in[r][i], wire == DType::kFloat32 ? wanted : RoundToBf16(wanted));
            }
          }
        }
      }
    });
  }
}

TEST_P(EpDispatcherTest, AMateThatSendsOtherRowsOrIsLostEndsTheExchange) {
  std::mt19937 rng(4);
  const auto placement = std::make_shared<const Placement>(RandomPlacement(rng, 1, kExperts, 0, 2));
  for (const bool lost : {false, true}) {
    RunRanks(2, {.lanes = {GetParam()}, .wait_max = absl::Seconds(6)},
             [&](EpGroup& group, int rank) {
               const auto d = EpDispatcher::Create(
                                  &group, placement,
                                  {.top_k = kTopK, .hidden = 8, .max_tokens = 9, .tensor_ranks = 2})
                                  .value();
               if (lost && rank == 1) return;  // never comes
               // Rank 0 wants 3 rows, rank 1 sends 5.
               std::vector<float> numbers(5 * 8);
               const Matrix<float> five(numbers.data(), {5, 8});
               const std::vector<Matrix<const float>> to(2, five.Slice(0, rank == 0 ? 0 : 5));
               const std::vector<Matrix<float>> from(2, five.Slice(0, rank == 0 ? 3 : 0));
               const absl::Status done = d->Exchange(to, from, DType::kFloat32);
               if (rank == 0) {
                 EXPECT_TRUE(absl::IsUnavailable(done)) << done;
                 EXPECT_TRUE(absl::IsUnavailable(group.status()));
               }
             });
  }
}

TEST_P(EpDispatcherTest, SleepsWhileNobodyHasWork) {
  std::atomic<bool> over = false;
  RunRanks(2, {.lanes = {GetParam()}}, [&](EpGroup& group, int rank) {
    if (rank == 0) {
      rusage before, after;
      getrusage(RUSAGE_THREAD, &before);
      while (!group.StepOpened()) group.Sleep(-1, absl::Seconds(5));
      getrusage(RUSAGE_THREAD, &after);
      const auto used =
          absl::DurationFromTimeval(after.ru_utime) + absl::DurationFromTimeval(after.ru_stime) -
          absl::DurationFromTimeval(before.ru_utime) - absl::DurationFromTimeval(before.ru_stime);
      EXPECT_LT(used, absl::Milliseconds(100));
      EXPECT_TRUE(over) << "woken before there was a step";
    } else {
      absl::SleepFor(absl::Seconds(1));
      over = true;
    }
    auto headers = group.OpenStep({.rows = static_cast<uint32_t>(rank), .wants = kWantsToLeave});
    ASSERT_TRUE(headers.ok()) << headers.status();
    EXPECT_EQ((*headers)[1].rows, 1u);
    EXPECT_EQ((*headers)[0].step, 2u);  // the first one ended Connect
  });
}

TEST_P(EpDispatcherTest, ARankThatComputesOtherwiseIsAnError) {
  std::mt19937 rng(5);
  const auto placement = std::make_shared<const Placement>(RandomPlacement(rng, 1, kExperts, 0, 2));
  const EpDispatcher::Options options = {
      .top_k = kTopK, .hidden = 8, .max_tokens = 9, .low_latency_tokens = 9};
  EpDispatcher::Options path = options, payload = options, combine = options;
  path.low_latency_tokens = 0;
  payload.int8_tokens = true;
  combine.reduced = true;
  for (const EpDispatcher::Options& other : {path, payload, combine}) {
    RunRanks(2, {.lanes = {GetParam()}, .wait_max = absl::Seconds(6)},
             [&](EpGroup& group, int rank) {
               auto d = EpDispatcher::Create(&group, placement, rank == 0 ? options : other);
               ASSERT_TRUE(d.ok()) << d.status();
               auto headers = group.OpenStep({.rows = 9});
               ASSERT_TRUE(headers.ok());
               (*d)->BeginStep(*headers);
               std::mt19937 mine(rank);
               const auto out = Exchange(**d, 0, RandomTokens(mine, 9, kExperts, kTopK, 8));
               EXPECT_TRUE(absl::IsUnavailable(out.status())) << out.status();
               EXPECT_TRUE(absl::IsUnavailable(group.OpenStep({}).status()));
             });
  }
}

INSTANTIATE_TEST_SUITE_P(Lanes, EpDispatcherTest, ::testing::Values("shm", "tcp"),
                         [](const auto& info) { return info.param; });

TEST(EpGroupTest, ConnectNamesAConfigThatDiffers) {
  MonotonicClock clock;
  auto a = EpGroup::Create({.rank = 0, .world = 2, .config = "model-a", .lanes = {"tcp"}}, &clock);
  auto b = EpGroup::Create({.rank = 1, .world = 2, .config = "model-b", .lanes = {"tcp"}}, &clock);
  ASSERT_TRUE(a.ok() && b.ok());
  const std::vector<std::optional<EpHello>> hellos = {std::nullopt, OnTheWire((*b)->HelloFor(0))};
  const absl::Status s = (*a)->Connect(hellos);
  EXPECT_TRUE(absl::IsFailedPrecondition(s)) << s;
  EXPECT_NE(s.message().find("model-b"), s.message().npos) << s;
}

TEST(EpGroupTest, RefusesOptionsOutOfRange) {
  MonotonicClock clock;
  EXPECT_FALSE(EpGroup::Create({.rank = 2, .world = 2}, &clock).ok());
  EXPECT_FALSE(EpGroup::Create({.rank = 0, .world = kEpRanksMax + 1}, &clock).ok());
  EXPECT_FALSE(EpGroup::Create({.rank = 0, .world = 2, .ring_bytes = 100'000}, &clock).ok());
  EXPECT_FALSE(EpGroup::Create({.rank = 0, .world = 2, .lanes = {"pigeon"}}, &clock).ok());
}

}  // namespace
}  // namespace switchyard
