#include "router/conductor.h"

#include <gtest/gtest.h>

#include <map>

#include "absl/strings/str_cat.h"
#include "cluster/convert.h"

namespace switchyard {
namespace {

namespace pb = cluster::v1;

// What a worker is told to do, in order: prompts are one token, the request's number.
class Links final : public WorkerLinks {
 public:
  void Dial(size_t, const std::string&) override {}
  void Forget(size_t slot) override { forgotten.push_back(slot); }
  bool Send(size_t, StreamId, pb::ToWorker message) override {
    if (message.has_submit()) submitted.push_back(message.submit());
    return true;
  }
  void Cancel(size_t, StreamId) override {}
  std::vector<pb::Submit> submitted;
  std::vector<size_t> forgotten;
};

class ConductorTest : public testing::Test {
 protected:
  ConductorTest()
      : metrics_("m"), options_(MakeOptions()), conductor_(&options_, "r", MakeOutside()) {
    conductor_.workers().SetAddresses(pb::ROLE_DECODE, {"127.0.0.1:1"});
    Register(StreamId(1));
  }

  void Register(StreamId stream) {
    pb::Registration r;
    r.set_role(pb::ROLE_DECODE);
    r.set_wire_version(kClusterWireVersion);
    r.set_incarnation(1);
    r.set_numerics_id("n");
    r.set_layout_id("l");
    r.set_max_model_len(2048);
    r.set_block_tokens(16);
    r.set_kv_blocks_total(1 << 20);
    r.set_vocab_size(4096);
    conductor_.workers().OnRegistered(0, stream, r);
    pb::Heartbeat h;
    h.set_kv_blocks_free(1 << 20);
    conductor_.workers().OnHeartbeat(0, stream, h);
  }

  static CoreOptions MakeOptions() {
    CoreOptions options;
    options.model.vocab_size = 4096;
    return options;
  }
  Conductor::Outside MakeOutside() {
    return {.links = &links_,
            .clock = &clock_,
            .log = &log_,
            .metrics = &metrics_,
            .ended = [](const std::string&) {}};
  }
  void Begin(int number, int priority = 0, absl::Duration deadline = absl::InfiniteDuration()) {
    ClientRequest request;
    request.prompt_ids = {number};
    request.max_tokens = 2;
    request.priority = priority;
    request.deadline = deadline;
    conductor_.Begin(static_cast<uint64_t>(number), absl::StrCat(number), request,
                     [this, number](const ClientUpdate& u) {
                       if (!u.error.ok()) errors_[number] = u.error.code();
                     });
    conductor_.Turn();
  }
  // The worker's answer to the i-th submit: a token.
  void Serve(size_t i) {
    pb::StepEvents events;
    pb::AttemptEvent& e = *events.add_events();
    *e.mutable_id() = links_.submitted.at(i).id();
    e.mutable_token()->set_token(7);
    conductor_.workers().OnEvents(0, StreamId(1), events);
    conductor_.Turn();
  }
  int Last() const { return links_.submitted.back().prompt_ids(0); }

  ManualClock clock_;
  Logger log_{"router", LogLevel::kError, LogFormat::kText};
  Links links_;
  std::map<int, absl::StatusCode> errors_;  // by request
  RouterMetrics metrics_;
  CoreOptions options_;
  Conductor conductor_;
};

TEST_F(ConductorTest, ALongQueueIsServedFromItsEnd) {
  int next = 1;
  while (next <= kUnservedMax) Begin(next++);
  EXPECT_EQ(links_.submitted.size(), static_cast<size_t>(kUnservedMax));
  for (int i = 0; i < 3; ++i) Begin(next++);  // 65, 66, 67 wait
  Serve(0);
  EXPECT_EQ(Last(), kUnservedMax + 1) << "in order";
  clock_.Advance(absl::Milliseconds(1500));
  Begin(next++);  // 68
  Serve(1);
  EXPECT_EQ(Last(), kUnservedMax + 4) << "the newest";
  Begin(next++, /*priority=*/-1);
  EXPECT_EQ(Last(), next - 1) << "more urgent than all that wait: they do not count";
  Serve(links_.submitted.size() - 1);
  Serve(2);
  EXPECT_EQ(Last(), kUnservedMax + 3);
  Serve(3);
  EXPECT_EQ(Last(), kUnservedMax + 2);
  EXPECT_EQ(conductor_.waiting(), 0);
}

TEST_F(ConductorTest, ALongQueueIsServedByArrivalWhateverTheDeadlines) {
  int next = 1;
  while (next <= kUnservedMax) Begin(next++);
  Begin(next++);                        // 65: ten minutes
  Begin(next++, 0, absl::Seconds(20));  // 66
  clock_.Advance(absl::Milliseconds(1500));
  Begin(next++, 0, absl::Seconds(300));  // 67
  Begin(next++, 0, absl::Seconds(20));   // 68: of those that wait, it has the second least time
  for (int i = 0; i < 4; ++i) {
    Serve(static_cast<size_t>(i));
    EXPECT_EQ(Last(), kUnservedMax + 4 - i);
  }
}

TEST_F(ConductorTest, WithoutAWorkerRequestsWaitForOneAMinuteOrTheirDeadline) {
  conductor_.workers().OnLost(0, StreamId(1), absl::UnavailableError("gone"));
  Begin(1);
  Begin(2, /*priority=*/0, absl::Seconds(5));
  clock_.Advance(absl::Milliseconds(5001));
  conductor_.Turn();
  EXPECT_EQ(errors_, (std::map<int, absl::StatusCode>{{2, absl::StatusCode::kDeadlineExceeded}}));
  clock_.Advance(absl::Seconds(54));
  conductor_.Turn();
  EXPECT_EQ(conductor_.waiting(), 1);
  Register(StreamId(2));
  conductor_.Turn();
  ASSERT_EQ(links_.submitted.size(), 1u);
  EXPECT_EQ(Last(), 1);
  EXPECT_LE(links_.submitted[0].deadline_ms(), 541'000) << "what is left of its ten minutes";
  conductor_.workers().OnLost(0, StreamId(2), absl::UnavailableError("gone again"));
  clock_.Advance(absl::Seconds(59));
  conductor_.Turn();
  EXPECT_EQ(conductor_.waiting(), 1);
  clock_.Advance(absl::Milliseconds(1001));
  conductor_.Turn();
  EXPECT_EQ(errors_[1], absl::StatusCode::kUnavailable);
  EXPECT_EQ(conductor_.requests(), 0);
}

TEST_F(ConductorTest, WhoIsNoLongerListedIsForgottenWhenItsStreamEnds) {
  conductor_.workers().SetAddresses(pb::ROLE_DECODE, {"127.0.0.1:2"});
  Begin(1);
  EXPECT_EQ(links_.submitted.size(), 1u) << "it lives, whatever the name server says";
  EXPECT_TRUE(links_.forgotten.empty());
  conductor_.workers().OnLost(0, StreamId(1), absl::UnavailableError("gone"));
  EXPECT_EQ(links_.forgotten, std::vector<size_t>{0});
  EXPECT_EQ(conductor_.workers().Addresses(pb::ROLE_DECODE), 1);
  EXPECT_EQ(conductor_.waiting(), 1);
}

}  // namespace
}  // namespace switchyard
