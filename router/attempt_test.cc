#include "router/attempt.h"

#include <gtest/gtest.h>

#include <map>

#include "common/clock.h"

namespace switchyard {
namespace {

using Finish = WorkerEvent::Finish;
using Phase = RequestAttempts::Phase;
using Reason = RequestAttempts::End::Reason;
using Effects = RequestAttempts::Effects;

// The token that follows a history: lost, doubled and foreign tokens all change what comes after.
TokenId H(const std::vector<TokenId>& history) {
  uint64_t h = 1469598103934665603u;
  for (TokenId t : history) h = (h ^ static_cast<uint64_t>(t)) * 1099511628211u;
  return static_cast<TokenId>((h >> 33) % 100000);
}

std::vector<TokenId> Oracle(int n) {
  std::vector<TokenId> out;
  while (static_cast<int>(out.size()) < n) out.push_back(H(out));
  return out;
}

WorkerEvent Token(int attempt, int64_t index, TokenId token, Finish finish = Finish::kNone) {
  WorkerEvent e;
  e.attempt = attempt;
  e.index = index;
  e.token = SampledToken{.token = token, .logprob = 0, .rank = 1, .top = {}};
  e.finish = finish;
  return e;
}

WorkerEvent Error(int attempt, absl::Status status) {
  WorkerEvent e;
  e.attempt = attempt;
  e.finish = Finish::kError;
  e.error = std::move(status);
  return e;
}

WorkerEvent HandedOff(int attempt) {
  WorkerEvent e;
  e.attempt = attempt;
  e.handed_off = true;
  e.kv_bytes_moved = 1000;
  e.kv_lane = "shm";
  return e;
}

const WorkerId kP(1), kD(2);

class AttemptTest : public ::testing::Test {
 protected:
  std::mt19937_64 rng_{42};
  ManualClock clock_;
  absl::Time now() { return clock_.Now(); }
};

TEST_F(AttemptTest, LocalAttemptDeliversInOrderAndEnds) {
  RequestAttempts a(3, {}, &rng_);
  EXPECT_EQ(a.Start({kD, std::nullopt}), 1);
  EXPECT_EQ(a.OnEvent(now(), kD, Token(1, 0, 10)).tokens.size(), 1u);
  EXPECT_EQ(a.OnEvent(now(), kD, Token(1, 0, 10)).tokens.size(), 0u);  // repeat
  EXPECT_EQ(a.OnEvent(now(), kD, Token(1, 1, 11)).tokens.size(), 1u);
  Effects e = a.OnEvent(now(), kD, Token(1, 2, 12, Finish::kLength));
  ASSERT_TRUE(e.end.has_value());
  EXPECT_EQ(e.end->reason, Reason::kLength);
  EXPECT_TRUE(e.aborts.empty());
  EXPECT_EQ(a.generated(), (std::vector<TokenId>{10, 11, 12}));
}

TEST_F(AttemptTest, GapIsAnInternalErrorAndAbortsTheWorker) {
  RequestAttempts a(9, {}, &rng_);
  a.Start({kD, std::nullopt});
  a.OnEvent(now(), kD, Token(1, 0, 10));
  Effects e = a.OnEvent(now(), kD, Token(1, 2, 12));
  ASSERT_TRUE(e.end.has_value());
  EXPECT_EQ(e.end->error.code(), absl::StatusCode::kInternal);
  ASSERT_EQ(e.aborts.size(), 1u);
  EXPECT_EQ(a.generated().size(), 1u);
}

TEST_F(AttemptTest, DecodeTokensWaitForThePrefillToken) {
  RequestAttempts a(3, {}, &rng_);
  a.Start({kD, kP});
  EXPECT_TRUE(a.OnEvent(now(), kD, Token(1, 1, 11)).tokens.empty());
  WorkerEvent last = Token(1, 2, 12, Finish::kStop);
  last.kv_bytes_moved = 1000;
  last.kv_lane = "shm";
  EXPECT_TRUE(a.OnEvent(now(), kD, last).tokens.empty());
  Effects e = a.OnEvent(now(), kP, Token(1, 0, 10));
  EXPECT_EQ(e.tokens.size(), 3u);
  EXPECT_TRUE(e.last_token_stops);
  ASSERT_TRUE(e.end.has_value());
  EXPECT_EQ(e.end->reason, Reason::kStop);
  EXPECT_EQ(a.kv_bytes_moved(), 1000u);
  EXPECT_EQ(a.kv_lane(), "shm");
}

TEST_F(AttemptTest, TheHandOffIsCountedOnceWhoeverSaysSoFirst) {
  for (const bool prefill_first : {true, false}) {
    RequestAttempts a(2, {}, &rng_);
    a.Start({kD, kP});
    a.OnEvent(now(), kP, Token(1, 0, 10));
    if (prefill_first) a.OnEvent(now(), kP, HandedOff(1));
    WorkerEvent last = Token(1, 1, 11, Finish::kLength);
    last.kv_bytes_moved = 1000;
    last.kv_lane = "shm";
    EXPECT_TRUE(a.OnEvent(now(), kD, last).end.has_value());
    a.OnEvent(now(), kP, HandedOff(1));
    EXPECT_EQ(a.kv_bytes_moved(), 1000u);
    EXPECT_EQ(a.kv_lane(), "shm");
  }
}

TEST_F(AttemptTest, PrefillTokenThatEndsTheRequestAbortsDecode) {
  RequestAttempts a(9, {}, &rng_);
  a.Start({kD, kP});
  Effects e = a.OnEvent(now(), kP, Token(1, 0, 10, Finish::kStop));
  ASSERT_TRUE(e.end.has_value());
  ASSERT_EQ(e.aborts.size(), 1u);
  EXPECT_EQ(e.aborts[0].worker, kD);
}

TEST_F(AttemptTest, LostPrefillWorkerAfterTheHandOffIsHarmless) {
  RequestAttempts a(9, {}, &rng_);
  a.Start({kD, kP});
  a.OnEvent(now(), kP, Token(1, 0, 10));
  a.OnEvent(now(), kP, HandedOff(1));
  a.OnWorkerLost(now(), kP, absl::UnavailableError("gone"));
  EXPECT_EQ(a.phase(), Phase::kRunning);
  EXPECT_EQ(a.OnEvent(now(), kD, Token(1, 1, 11)).tokens.size(), 1u);
}

TEST_F(AttemptTest, LostPrefillWorkerDuringTheHandOffRetriesWithItsToken) {
  RequestAttempts a(9, {}, &rng_);
  a.Start({kD, kP});
  a.OnEvent(now(), kP, Token(1, 0, 10));
  Effects e = a.OnWorkerLost(now(), kP, absl::UnavailableError("gone"));
  EXPECT_EQ(a.phase(), Phase::kWaiting);
  ASSERT_EQ(e.aborts.size(), 1u);
  EXPECT_EQ(e.aborts[0].worker, kD);
  EXPECT_TRUE(a.avoid().contains(kP));
  EXPECT_GE(a.wake(), now() + absl::Milliseconds(25));
  EXPECT_EQ(a.Start({kD, std::nullopt}), 2);
  EXPECT_TRUE(a.OnEvent(now(), kD, Token(1, 1, 66)).tokens.empty());  // of the old attempt
  EXPECT_EQ(a.OnEvent(now(), kD, Token(2, 1, 11)).tokens.size(), 1u);
  EXPECT_EQ(a.generated(), (std::vector<TokenId>{10, 11}));
}

TEST_F(AttemptTest, BudgetEndsInAClearError) {
  RequestAttempts a(9, {}, &rng_);
  Effects e;
  for (int i = 1; i <= 5; ++i) {
    ASSERT_EQ(a.phase(), Phase::kWaiting);
    a.Start({kD, std::nullopt});
    e = a.OnEvent(now(), kD, Error(i, absl::DataLossError("checksum")));
  }
  ASSERT_TRUE(e.end.has_value());
  EXPECT_EQ(e.end->error.code(), absl::StatusCode::kUnavailable);
  EXPECT_NE(e.end->error.message().find("5 attempts"), absl::string_view::npos);
  EXPECT_NE(e.end->error.message().find("checksum"), absl::string_view::npos);
}

TEST_F(AttemptTest, AfterTwoFaultsDecodeIsAloneUntilATokenComes) {
  RequestAttempts a(99, {}, &rng_);
  for (int i = 1; i <= 2; ++i) {
    EXPECT_TRUE(a.may_hand_off());
    a.Start({kD, kP});
    a.OnWorkerLost(now(), kP, absl::UnavailableError("gone"));
  }
  EXPECT_FALSE(a.may_hand_off());
  a.Start({kD, std::nullopt});
  a.OnEvent(now(), kD, Token(3, 0, 5));
  EXPECT_TRUE(a.may_hand_off());
}

TEST_F(AttemptTest, NewTokenRenewsTheBudget) {
  RequestAttempts a(99, {}, &rng_);
  for (int i = 1; i <= 20; ++i) {
    ASSERT_EQ(a.phase(), Phase::kWaiting) << i;
    a.Start({kD, std::nullopt});
    ASSERT_EQ(a.OnEvent(now(), kD, Token(i, i - 1, i)).tokens.size(), 1u);
    Effects e = a.OnEvent(now(), kD, Error(i, absl::DataLossError("checksum")));
    EXPECT_EQ(e.faults, std::vector<WorkerId>{kD});
  }
}

TEST_F(AttemptTest, FullDecodeWorkerIsNobodysFaultAndItsAdviceIsTaken) {
  RequestAttempts a(9, {}, &rng_);
  a.Start({kD, kP});
  WorkerEvent full = Error(1, absl::ResourceExhaustedError("no blocks"));
  full.retry_after = absl::Seconds(1);
  Effects e = a.OnEvent(now(), kP, full);
  EXPECT_EQ(a.wake(), now() + absl::Seconds(1));
  EXPECT_TRUE(e.faults.empty());
  EXPECT_FALSE(a.avoid().contains(kP));
}

TEST_F(AttemptTest, ErrorsThatNoOtherWorkerCanMendEndAtOnce) {
  RequestAttempts a(9, {}, &rng_);
  a.Start({kD, kP});
  Effects e = a.OnEvent(now(), kP, Error(1, absl::InvalidArgumentError("no")));
  ASSERT_TRUE(e.end.has_value());
  EXPECT_EQ(e.end->error.code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(AttemptTest, StopAbortsWhatRuns) {
  RequestAttempts a(9, {}, &rng_);
  a.Start({kD, kP});
  Effects e = a.Stop({Reason::kAborted, absl::OkStatus()});
  EXPECT_EQ(e.aborts.size(), 2u);
  EXPECT_TRUE(e.end.has_value());
  EXPECT_FALSE(a.Stop({Reason::kAborted, absl::OkStatus()}).end.has_value());
}

// Workers that answer with H over streams that interleave, repeat and break. Whatever happens, the
// tokens that come out are the oracle's; without a hole in a stream they come out whole.
class Simulation {
 public:
  Simulation(uint64_t seed, bool holes)
      : rng_(seed), length_(1 + Below(40)), holes_(holes), request_(length_, Limits(), &rng_) {}

  void Run() {
    for (int step = 0; step < 100000 && !end_; ++step) {
      now_ += absl::Milliseconds(1);
      if (request_.phase() == Phase::kWaiting) {
        if (now_ >= request_.wake()) StartAttempt();
        continue;
      }
      const int dice = Below(1000);
      if (dice < 8 && crashes_ < 20) {
        Crash(Below(2) == 0 ? route_.decode : route_.prefill.value_or(route_.decode));
      } else if (dice < 10) {
        Fault();
      } else {
        DeliverOne();
      }
    }
  }

  std::optional<RequestAttempts::End> end_;
  std::vector<TokenId> delivered_;
  int length() const { return length_; }
  bool broke_a_stream() const { return broke_; }

 private:
  static AttemptLimits Limits() { return {.attempts_max = 1000}; }
  int Below(int n) { return static_cast<int>(rng_() % n); }

  void StartAttempt() {
    route_ = {WorkerId(next_worker_++), std::nullopt};
    if (Below(3) != 0) route_.prefill = WorkerId(next_worker_++);
    const int n = request_.Start(route_);
    std::vector<TokenId> history = request_.generated();
    const bool remote = route_.prefill.has_value();
    for (int i = static_cast<int>(history.size()); i < length_; ++i) {
      history.push_back(H(history));
      WorkerEvent e =
          Token(n, i, history.back(), i + 1 == length_ ? Finish::kLength : Finish::kNone);
      const bool by_prefill = remote && i == static_cast<int>(request_.generated().size());
      streams_[by_prefill ? *route_.prefill : route_.decode].push_back(std::move(e));
      if (by_prefill && i + 1 < length_) streams_[*route_.prefill].push_back(HandedOff(n));
      if (by_prefill && i + 1 == length_) break;
    }
  }

  // The next event of a random stream, old attempts' too; sometimes twice, sometimes lost.
  void DeliverOne() {
    if (streams_.empty()) return;
    auto it = std::next(streams_.begin(), Below(static_cast<int>(streams_.size())));
    const WorkerId worker = it->first;
    WorkerEvent e = it->second.front();
    it->second.pop_front();
    if (it->second.empty()) streams_.erase(it);
    if (holes_ && Below(50) == 0) {
      broke_ = true;
      return;
    }
    const int times = Below(5) == 0 ? 2 : 1;
    for (int i = 0; i < times; ++i) Apply(request_.OnEvent(now_, worker, e));
  }
  void Crash(WorkerId worker) {
    ++crashes_;
    streams_.erase(worker);
    Apply(request_.OnWorkerLost(now_, worker, absl::UnavailableError("crash")));
  }
  void Fault() {
    const absl::Status faults[] = {absl::UnavailableError("x"), absl::DataLossError("x"),
                                   absl::AbortedError("x"), absl::ResourceExhaustedError("x")};
    WorkerId from = Below(2) == 0 ? route_.decode : route_.prefill.value_or(route_.decode);
    if (crashes_++ < 20)
      Apply(request_.OnEvent(now_, from, Error(request_.attempt(), faults[Below(4)])));
  }
  void Apply(const Effects& effects) {
    ASSERT_FALSE(end_.has_value() && !effects.tokens.empty());
    for (const SampledToken& t : effects.tokens) delivered_.push_back(t.token);
    if (effects.end) {
      ASSERT_FALSE(end_.has_value());
      end_ = effects.end;
    }
  }

  std::mt19937_64 rng_;
  const int length_;
  const bool holes_;
  RequestAttempts request_;
  absl::Time now_ = absl::UnixEpoch();
  Route route_;
  uint64_t next_worker_ = 1;
  int crashes_ = 0;
  bool broke_ = false;
  std::map<WorkerId, std::deque<WorkerEvent>> streams_;
};

TEST(AttemptSimulation, CrashesAndRepeatsNeverChangeTheTokens) {
  for (uint64_t seed = 0; seed < 3000; ++seed) {
    Simulation s(seed, /*holes=*/false);
    s.Run();
    ASSERT_TRUE(s.end_.has_value()) << "seed " << seed;
    ASSERT_EQ(s.end_->reason, Reason::kLength) << "seed " << seed << ": " << s.end_->error;
    ASSERT_EQ(s.delivered_, Oracle(s.length())) << "seed " << seed;
  }
}

TEST(AttemptSimulation, HoleInAStreamIsNeverAWrongToken) {
  int broken = 0;
  for (uint64_t seed = 0; seed < 1000; ++seed) {
    Simulation s(seed, /*holes=*/true);
    s.Run();
    const std::vector<TokenId> oracle = Oracle(s.length());
    ASSERT_LE(s.delivered_.size(), oracle.size()) << "seed " << seed;
    ASSERT_TRUE(std::equal(s.delivered_.begin(), s.delivered_.end(), oracle.begin()))
        << "seed " << seed;
    if (s.end_ && s.end_->reason == Reason::kLength) {
      ASSERT_EQ(s.delivered_, oracle) << "seed " << seed;
    }
    broken += s.broke_a_stream();
  }
  EXPECT_GT(broken, 100);
}

}  // namespace
}  // namespace switchyard
