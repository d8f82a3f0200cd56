#include "router/conductor.h"

#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "cluster/convert.h"

namespace switchyard {
namespace {

namespace pb = cluster::v1;

// What a worker is told to do, in order: prompts are one token, the request's number.
class Links final : public WorkerLinks {
 public:
  void Dial(size_t, const std::string&) override {}
  void Forget(size_t) override {}
  bool Send(size_t, StreamId, pb::ToWorker message) override {
    if (message.has_submit()) submitted.push_back(message.submit());
    return true;
  }
  void Cancel(size_t, StreamId) override {}
  std::vector<pb::Submit> submitted;
};

class ConductorTest : public testing::Test {
 protected:
  ConductorTest()
      : metrics_("m"), options_(MakeOptions()), conductor_(&options_, "r", MakeOutside()) {
    conductor_.workers().SetAddresses(pb::ROLE_DECODE, {"127.0.0.1:1"});
    pb::Registration r;
    r.set_role(pb::ROLE_DECODE);
    r.set_wire_version(kClusterWireVersion);
    r.set_incarnation(1);
    r.set_numerics_id("n");
    r.set_layout_id("l");
    r.set_max_model_len(2048);
    r.set_block_tokens(16);
    r.set_kv_blocks_total(1 << 20);
    r.set_kv_bytes_per_token(1);
    r.set_vocab_size(4096);
    conductor_.workers().OnRegistered(0, StreamId(1), r);
    pb::Heartbeat h;
    h.set_kv_blocks_free(1 << 20);
    conductor_.workers().OnHeartbeat(0, StreamId(1), h);
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
  void Begin(int number, int priority = 0) {
    ClientRequest request;
    request.prompt_ids = {number};
    request.max_tokens = 2;
    request.priority = priority;
    conductor_.Begin(static_cast<uint64_t>(number), absl::StrCat(number), request,
                     [](ClientUpdate) {});
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

}  // namespace
}  // namespace switchyard
