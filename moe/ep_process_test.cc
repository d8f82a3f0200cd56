// Ranks as processes, by real UCX, that are killed or stopped in the midst: the others learn it in
// bounded time. The other processes are this executable again.
#include <gtest/gtest.h>
#include <signal.h>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/testing/other_process.h"
#include "moe/ep_dispatcher.h"
#include "moe/ep_testing.h"

namespace switchyard {
namespace {

using namespace switchyard::testing;  // NOLINT: the vocabulary of this file

constexpr int kExperts = 8, kTopK = 2, kHidden = 64, kTokens = 32;

struct RankSetup {
  std::string lane;
  int world, rank;
  bool low_latency, overlap;
  int dies_in = -1;  // step; between its two micro-batches
  absl::Duration wait_max = {};
};

// Connects over `exchange`, which sends this rank's hellos and returns those for it.
template <typename Exchange>
absl::StatusOr<std::unique_ptr<EpGroup>> Join(const RankSetup& s, const Clock* clock,
                                              Exchange exchange, int* turns) {
  auto group = EpGroup::Create({.rank = s.rank,
                                .world = s.world,
                                .lanes = {s.lane},
                                .wait_max = s.wait_max,
                                .on_wait = [turns] { ++*turns; }},
                               clock);
  if (!group.ok()) return group.status();
  std::vector<std::string> mine(s.world);
  for (int p = 0; p < s.world; ++p) {
    if (p != s.rank) mine[p] = EncodeEpHello((*group)->HelloFor(p));
  }
  const std::vector<std::string> theirs = exchange(mine);
  std::vector<std::optional<EpHello>> hellos(s.world);
  for (int p = 0; p < s.world; ++p) {
    if (p == s.rank) continue;
    auto hello = DecodeEpHello(theirs[p]);
    if (!hello.ok()) return hello.status();
    hellos[p] = *std::move(hello);
  }
  const absl::Status connected = (*group)->Connect(hellos);
  if (!connected.ok()) return connected;
  return group;
}

// Steps until the epoch ends or a result is wrong. The status of the end.
absl::Status RunSteps(const RankSetup& s, EpGroup& group,
                      const std::function<void(int step)>& on_step) {
  std::mt19937 shared(4);
  const auto placement =
      std::make_shared<const Placement>(RandomPlacement(shared, 1, kExperts, 0, s.world));
  auto d = EpDispatcher::Create(&group, placement,
                                {.top_k = kTopK,
                                 .hidden = kHidden,
                                 .max_tokens = kTokens,
                                 .low_latency_tokens = s.low_latency ? kTokens : 0,
                                 .overlap = s.overlap ? EpOverlap::kOn : EpOverlap::kOff});
  if (!d.ok()) return d.status();
  std::mt19937 rng(s.rank);
  for (int step = 0;; ++step) {
    auto headers = group.OpenStep({.rows = 1});
    if (!headers.ok()) return headers.status();
    (*d)->BeginStep(*headers);
    std::vector<Tokens> tokens;
    for (int i = 0; i < (*d)->micro_batches(); ++i) {
      tokens.push_back(RandomTokens(rng, rng() % kTokens, kExperts, kTopK, kHidden));
    }
    const auto out = ExchangeAll(**d, 0, tokens, [&] {
      if (step == s.dies_in) raise(SIGKILL);
    });
    if (!out.ok()) return out.status();
    for (size_t i = 0; i < tokens.size(); ++i) {
      if ((*out)[i] == Wanted(tokens[i], kExperts, DType::kBfloat16)) continue;
      return absl::DataLossError("other sums than the loopback's");
    }
    on_step(step);
  }
}

int RankMain(int fd) {
  RankSetup s;
  s.lane = ReceiveText(fd);
  s.world = static_cast<int>(ReceiveNumber(fd));
  s.rank = static_cast<int>(ReceiveNumber(fd));
  s.low_latency = ReceiveNumber(fd) != 0;
  s.overlap = ReceiveNumber(fd) != 0;
  s.dies_in = static_cast<int>(ReceiveNumber(fd));
  s.wait_max = absl::Seconds(ReceiveNumber(fd));
  MonotonicClock clock;
  int turns = 0;
  const auto exchange = [&](const std::vector<std::string>& mine) {
    for (const std::string& hello : mine) SendText(fd, hello);
    std::vector<std::string> theirs(s.world);
    for (std::string& hello : theirs) hello = ReceiveText(fd);
    return theirs;
  };
  auto group = Join(s, &clock, exchange, &turns);
  if (!group.ok()) return 1;
  const absl::Status end = RunSteps(s, **group, [](int) {});
  SendText(fd, end.ToString());
  ReceiveText(fd);  // until the parent is done
  return 0;
}

class EpProcessTest : public ::testing::TestWithParam<std::tuple<std::string, int, bool>> {
 protected:
  // Rank 0 is this process; the last one gets `signal` after some steps, or dies (0) within one.
  // Who ends is noticed at once, by its connections; only who is stopped is noticed by wait_max.
  void LoseTheLastRank(int signal, absl::Duration within) {
    constexpr int kLastStep = 50;
    const int wait_max_seconds = signal == SIGSTOP ? 6 : 30;
    const auto [lane, world, low_latency] = GetParam();
    const bool overlap = signal == 0 || world == 4;
    MonotonicClock clock;
    std::vector<std::unique_ptr<OtherProcess>> others(1);
    for (int r = 1; r < world; ++r) {
      others.push_back(std::make_unique<OtherProcess>("rank"));
      SendText(others[r]->fd(), lane);
      const int dies_in = signal == 0 && r + 1 == world ? kLastStep + 1 : -1;
      for (int n : {world, r, low_latency ? 1 : 0, overlap ? 1 : 0, dies_in, wait_max_seconds}) {
        SendNumber(others[r]->fd(), n);
      }
    }
    const RankSetup s = {lane, world, 0, low_latency, overlap, -1, absl::Seconds(wait_max_seconds)};
    int turns = 0;
    const auto exchange = [&](const std::vector<std::string>& mine) {
      std::vector<std::vector<std::string>> from(world, std::vector<std::string>(world));
      from[0] = mine;
      for (int r = 1; r < world; ++r) {
        for (std::string& hello : from[r]) hello = ReceiveText(others[r]->fd());
      }
      for (int r = 1; r < world; ++r) {
        for (int p = 0; p < world; ++p) SendText(others[r]->fd(), from[p][r]);
      }
      std::vector<std::string> theirs(world);
      for (int p = 0; p < world; ++p) theirs[p] = from[p][0];
      return theirs;
    };
    auto group = Join(s, &clock, exchange, &turns);
    ASSERT_TRUE(group.ok()) << group.status();
    std::optional<absl::Time> lost;
    const absl::Status end = RunSteps(s, **group, [&](int step) {
      if (step != kLastStep) return;
      lost = clock.Now();
      turns = 0;
      if (signal != 0) others.back()->Signal(signal);
    });
    EXPECT_TRUE(absl::IsUnavailable(end)) << end;
    ASSERT_TRUE(lost) << "over before any rank was lost: " << end;
    EXPECT_LT(clock.Now() - *lost, within);
    if (signal == SIGSTOP) {
      EXPECT_GE(turns, 4) << "a rank that waits for 6 s does not show it";
    }
    for (int r = 1; r + 1 < world; ++r) {  // the other survivors say the same
      const std::string said = ReceiveText(others[r]->fd());
      EXPECT_NE(said.find("UNAVAILABLE"), said.npos) << "rank " << r << ": " << said;
    }
  }
};

TEST_P(EpProcessTest, AKilledRankIsNoticed) { LoseTheLastRank(SIGKILL, absl::Seconds(15)); }
TEST_P(EpProcessTest, ARankThatDiesBetweenItsMicroBatchesIsNoticed) {
  LoseTheLastRank(0, absl::Seconds(15));
}
TEST_P(EpProcessTest, AStoppedRankIsNoticed) { LoseTheLastRank(SIGSTOP, absl::Seconds(20)); }

INSTANTIATE_TEST_SUITE_P(Groups, EpProcessTest,
                         ::testing::Values(std::tuple("shm", 2, true), std::tuple("shm", 4, false),
                                           std::tuple("tcp", 2, false), std::tuple("tcp", 4, true)),
                         [](const auto& info) {
                           return absl::StrCat(std::get<0>(info.param), std::get<1>(info.param),
                                               std::get<2>(info.param) ? "low" : "");
                         });

}  // namespace
}  // namespace switchyard

int main(int argc, char** argv) {
  const auto [role, fd] = switchyard::testing::RoleOf(argc, argv);
  if (role == "rank") return switchyard::RankMain(fd);
  ::testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
