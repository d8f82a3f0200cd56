// The gRPC front, the core and a worker, over real connections.
#include "router/grpc_front.h"

#include <gtest/gtest.h>

#include <atomic>
#include <map>
#include <set>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "cluster/grpc_server.h"
#include "common/mutex.h"
#include "proto/inference.grpc.pb.h"
#include "router/core.h"
#include "router/test_worker.h"

namespace switchyard {
namespace {

class GrpcFrontTest : public ::testing::Test {
 protected:
  void SetUp() override {
    CoreOptions options;
    options.model = TestModel();
    options.decode_addresses = {worker_.address()};
    core_ = *Core::Create(options, &clock_, &log_);
    front_ = *GrpcFront::Create(core_.get(), {.port = 0, .queued_updates_max = 64});
    core_->WatchReady([this](bool ready) { front_->SetServing(ready); });
    stub_ = v1::Router::NewStub(DialChannel(HostPort("127.0.0.1", front_->port())));
    ASSERT_TRUE(Eventually([&] { return core_->status().ready; }));
  }
  void TearDown() override { core_->WatchReady(nullptr); }

  template <typename Condition>
  static bool Eventually(const Condition& condition) {
    for (int i = 0; i < 2000; ++i) {
      if (condition()) return true;
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    return false;
  }
  static v1::GenerateRequest Request(int max_tokens) {
    v1::GenerateRequest r;
    for (int id : {1, 2, 3}) r.mutable_tokens()->add_ids(id);
    r.set_max_tokens(max_tokens);
    return r;
  }
  bool Idle() {
    return Eventually([&] {
      const RouterStatus s = core_->status();
      return s.running + s.waiting == 0 && worker_.held() == 0;
    });
  }
  absl::Status ErrorOf(const v1::GenerateRequest& request) {
    grpc::ClientContext context;
    auto stream = stub_->Generate(&context, request);
    v1::GenerateResponse response;
    while (stream->Read(&response)) {
    }
    return FromGrpc(stream->Finish());
  }

  MonotonicClock clock_;
  Logger log_{"test", LogLevel::kError, LogFormat::kText};
  TestWorker::Peers peers_;
  TestWorker worker_{&peers_, {}};
  std::unique_ptr<Core> core_;
  std::unique_ptr<GrpcFront> front_;
  std::unique_ptr<v1::Router::Stub> stub_;
};

TEST_F(GrpcFrontTest, StreamsTokensThenUsageAndMetrics) {
  grpc::ClientContext context;
  v1::GenerateRequest request = Request(50);
  request.set_request_id("mine");
  request.set_logprobs(0);
  auto stream = stub_->Generate(&context, request);
  std::vector<TokenId> tokens;
  v1::GenerateResponse response, last;
  bool first = true;
  while (stream->Read(&response)) {
    EXPECT_EQ(response.request_id(), "mine");
    EXPECT_EQ(response.seed() != 0, first);  // drawn, because the request gave none
    first = false;
    EXPECT_EQ(response.logprobs_size(), response.token_ids_size());
    tokens.insert(tokens.end(), response.token_ids().begin(), response.token_ids().end());
    last = response;
  }
  EXPECT_TRUE(stream->Finish().ok());
  EXPECT_EQ(tokens, TestTokens({1, 2, 3}, 50));
  EXPECT_EQ(last.finish_reason(), v1::FINISH_REASON_LENGTH);
  EXPECT_EQ(last.usage().prompt_tokens(), 3);
  EXPECT_EQ(last.usage().completion_tokens(), 50);
  EXPECT_EQ(last.metrics().decode_worker(), worker_.address());
  EXPECT_GT(last.metrics().e2e_seconds(), 0);
}

TEST_F(GrpcFrontTest, SeveralAnswersShareOneStream) {
  grpc::ClientContext context;
  v1::GenerateRequest request = Request(20);
  request.set_request_id("many");
  request.set_n(3);
  auto stream = stub_->Generate(&context, request);
  std::map<int, std::vector<TokenId>> tokens;
  std::map<int, uint64_t> seeds;
  std::set<int> ended;
  v1::GenerateResponse response;
  while (stream->Read(&response)) {
    const int i = response.index();
    EXPECT_EQ(response.request_id(), absl::StrCat("many-", i));
    EXPECT_FALSE(ended.contains(i));
    if (response.seed() != 0) seeds[i] = response.seed();
    tokens[i].insert(tokens[i].end(), response.token_ids().begin(), response.token_ids().end());
    if (response.finish_reason() != v1::FINISH_REASON_UNSPECIFIED) ended.insert(i);
  }
  EXPECT_TRUE(stream->Finish().ok());
  EXPECT_EQ(ended, (std::set<int>{0, 1, 2}));
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(tokens[i], TestTokens({1, 2, 3}, 20)) << i;
    EXPECT_EQ(seeds[i], seeds[0]);
  }
  EXPECT_EQ(seeds.size(), 3u);
}

// The second answer's name is taken: the first one must not run on.
TEST_F(GrpcFrontTest, OneAnswerRefusedIsAllRefused) {
  grpc::ClientContext context;
  v1::GenerateRequest blocker = Request(4000);
  blocker.set_request_id("x-1");
  auto stream = stub_->Generate(&context, blocker);
  v1::GenerateResponse response;
  ASSERT_TRUE(stream->Read(&response));
  v1::GenerateRequest request = Request(4000);
  request.set_request_id("x");
  request.set_n(2);
  EXPECT_EQ(ErrorOf(request).code(), absl::StatusCode::kAlreadyExists);
  EXPECT_TRUE(Eventually([&] { return core_->status().running == 1; }));
  context.TryCancel();
  EXPECT_TRUE(Idle());
}

TEST_F(GrpcFrontTest, DroppedStreamFreesTheWorker) {
  for (int tokens_read : {0, 1, 20}) {
    grpc::ClientContext context;
    auto stream = stub_->Generate(&context, Request(4000));
    v1::GenerateResponse response;
    for (int i = 0; i < tokens_read; ++i) ASSERT_TRUE(stream->Read(&response));
    context.TryCancel();
    stream->Finish();
    EXPECT_TRUE(Idle()) << tokens_read;
  }
}

TEST_F(GrpcFrontTest, ClientThatDoesNotReadIsAborted) {
  // A window that does not grow, or gRPC's own buffers would take the whole answer.
  grpc::ChannelArguments args;
  args.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 0);
  args.SetInt(GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, 16 << 10);
  auto stub = v1::Router::NewStub(grpc::CreateCustomChannel(
      HostPort("127.0.0.1", front_->port()), grpc::InsecureChannelCredentials(), args));
  grpc::ClientContext context;
  v1::GenerateRequest request = Request(4000);
  request.set_logprobs(0);
  auto stream = stub->Generate(&context, request);
  ASSERT_TRUE(Eventually([&] { return worker_.tokens_sent() > 0; }));
  EXPECT_TRUE(Idle());
  EXPECT_LT(worker_.tokens_sent(), 4000);
  v1::GenerateResponse response;
  while (stream->Read(&response)) {
  }
  EXPECT_EQ(stream->Finish().error_code(), grpc::RESOURCE_EXHAUSTED);
}

// Says nothing but what the test says.
class SilentCore final : public RouterCore {
 public:
  absl::StatusOr<std::string> Submit(ClientRequest request, Sink sink) override {
    MutexLock lock(mu_);
    sinks_.push_back(std::move(sink));
    return request.request_id;
  }
  bool Abort(const std::string&) override { return ++aborts_ > 0; }
  const ModelDescription& model() const override { return model_; }
  const Tokenizer* tokenizer() const override { return nullptr; }
  const RouterLimits& limits() const override { return limits_; }
  RouterStatus status() const override { return {}; }
  void ListRequests(std::function<void(std::vector<RequestStatus>)>) override {}
  void StartDrain() override {}
  std::string MetricsText() const override { return ""; }

  // Once there are `n`.
  std::vector<Sink> TakeSinks(size_t n) {
    MutexLock lock(mu_);
    if (sinks_.size() < n) return {};
    return std::exchange(sinks_, {});
  }
  int aborts() const { return aborts_; }

 private:
  const ModelDescription model_ = TestModel();
  const RouterLimits limits_;
  std::atomic<int> aborts_ = 0;
  Mutex mu_;
  std::vector<Sink> sinks_ ABSL_GUARDED_BY(mu_);
};

ClientUpdate Text(size_t size) {
  ClientUpdate update;
  update.text.assign(size, 'x');
  return update;
}
ClientUpdate End() {
  ClientUpdate last;
  last.finish = ClientUpdate::Finish::kLength;
  return last;
}
constexpr size_t kLarge = 3 << 20;  // more than a connection's window holds: its write waits

// What waits for a client is counted by answer, and merged by answer, in whatever turn they come.
TEST_F(GrpcFrontTest, UpdatesOfSeveralAnswersWaitAsOneEach) {
  SilentCore core;
  auto front = *GrpcFront::Create(&core, {.port = 0, .queued_updates_max = 64});
  auto stub = v1::Router::NewStub(DialChannel(HostPort("127.0.0.1", front->port())));
  grpc::ClientContext context;
  v1::GenerateRequest request = Request(100);
  request.set_n(2);
  auto stream = stub->Generate(&context, request);
  std::vector<RouterCore::Sink> sinks;
  ASSERT_TRUE(Eventually([&] { return !(sinks = core.TakeSinks(2)).empty(); }));
  sinks[0](Text(kLarge));
  for (int i = 0; i < 60; ++i) {
    for (auto& sink : sinks) sink(Text(1));
  }
  for (auto& sink : sinks) sink(End());
  sinks.clear();
  EXPECT_EQ(front->streams(), 1);
  v1::GenerateResponse response;
  std::map<int, size_t> text;
  int messages = 0;
  for (; stream->Read(&response); ++messages) text[response.index()] += response.text().size();
  EXPECT_TRUE(stream->Finish().ok());
  EXPECT_EQ(text, (std::map<int, size_t>{{0, kLarge + 60}, {1, 60}}));
  EXPECT_LE(messages, 10) << "the large one, what came before its write, one of each answer";
  EXPECT_TRUE(Eventually([&] { return front->streams() == 0; }));
}

TEST_F(GrpcFrontTest, StreamThatNobodyReadsIsCut) {
  SilentCore core;
  auto front = *GrpcFront::Create(
      &core, {.port = 0, .queued_updates_max = 64, .unread_grace = absl::Milliseconds(100)});
  auto stub = v1::Router::NewStub(DialChannel(HostPort("127.0.0.1", front->port())));
  grpc::ClientContext context;
  v1::GenerateRequest request = Request(100);
  request.set_request_id("unread");
  auto stream = stub->Generate(&context, request);
  std::vector<RouterCore::Sink> sinks;
  ASSERT_TRUE(Eventually([&] { return !(sinks = core.TakeSinks(1)).empty(); }));
  sinks[0](Text(kLarge));
  EXPECT_EQ(front->streams(), 1);
  // Up to 64 of them may go with the first write, whenever that begins; as many more are too many.
  for (int i = 0; i < 140; ++i) sinks[0](Text(1));
  sinks.clear();
  EXPECT_TRUE(Eventually([&] { return front->streams() == 0; }));
  EXPECT_EQ(core.aborts(), 1);
  context.TryCancel();
  EXPECT_FALSE(stream->Finish().ok());
}

TEST_F(GrpcFrontTest, AnEndedAnswerThatNobodyReadsIsCut) {
  SilentCore core;
  auto front = *GrpcFront::Create(&core, {.port = 0, .ended_grace = absl::Milliseconds(100)});
  auto stub = v1::Router::NewStub(DialChannel(HostPort("127.0.0.1", front->port())));
  grpc::ClientContext context;
  v1::GenerateRequest request = Request(2);
  request.set_request_id("unread");
  auto stream = stub->Generate(&context, request);
  std::vector<RouterCore::Sink> sinks;
  ASSERT_TRUE(Eventually([&] { return !(sinks = core.TakeSinks(1)).empty(); }));
  sinks[0](Text(kLarge));
  sinks[0](End());
  EXPECT_TRUE(Eventually([&] { return front->streams() == 0; }));
  EXPECT_EQ(core.aborts(), 0) << "the core is done with it";
  context.TryCancel();
  EXPECT_FALSE(stream->Finish().ok());
}

// Its id may be another request's by then.
TEST_F(GrpcFrontTest, CancelAfterTheCoresLastUpdateAbortsNothing) {
  for (const bool ended : {true, false}) {
    SilentCore core;
    auto front = *GrpcFront::Create(&core, {.port = 0, .queued_updates_max = 64});
    auto stub = v1::Router::NewStub(DialChannel(HostPort("127.0.0.1", front->port())));
    grpc::ClientContext context;
    v1::GenerateRequest request = Request(2);
    request.set_request_id("reused");
    auto stream = stub->Generate(&context, request);
    std::vector<RouterCore::Sink> sinks;
    ASSERT_TRUE(Eventually([&] { return !(sinks = core.TakeSinks(1)).empty(); }));
    sinks[0](Text(kLarge));
    if (ended) sinks[0](End());
    sinks.clear();
    context.TryCancel();
    stream->Finish();
    front.reset();  // every stream has ended
    EXPECT_EQ(core.aborts() > 0, !ended);
  }
}

TEST_F(GrpcFrontTest, AbortEndsTheStreamWithItsReason) {
  grpc::ClientContext context;
  v1::GenerateRequest request = Request(4000);
  request.set_request_id("a");
  auto stream = stub_->Generate(&context, request);
  v1::GenerateResponse response, last;
  ASSERT_TRUE(stream->Read(&response));
  grpc::ClientContext abort_context;
  v1::AbortRequest abort;
  v1::AbortResponse found;
  abort.set_request_id("a");
  ASSERT_TRUE(stub_->Abort(&abort_context, abort, &found).ok());
  EXPECT_TRUE(found.found());
  while (stream->Read(&response)) last = response;
  EXPECT_TRUE(stream->Finish().ok());
  EXPECT_EQ(last.finish_reason(), v1::FINISH_REASON_ABORT);
  EXPECT_TRUE(Idle());
}

TEST_F(GrpcFrontTest, BadRequestsAreRefusedByName) {
  v1::GenerateRequest text;
  text.set_text("hello");
  absl::Status s = ErrorOf(text);
  EXPECT_EQ(s.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(s.message().find("tokenizer"), absl::string_view::npos) << s;
  EXPECT_EQ(ErrorOf({}).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(ErrorOf(Request(0)).code(), absl::StatusCode::kInvalidArgument);
  v1::GenerateRequest negative = Request(1);
  negative.set_logprobs(-1);
  EXPECT_EQ(ErrorOf(negative).code(), absl::StatusCode::kInvalidArgument);
  v1::GenerateRequest samples = Request(1);
  samples.set_n(129);
  EXPECT_EQ(ErrorOf(samples).message(), "n is 129, must be from 1 to 128");
  v1::GenerateRequest bias = Request(1);
  (*bias.mutable_sampling()->mutable_logit_bias())[5] = 101;
  EXPECT_EQ(ErrorOf(bias).code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(GrpcFrontTest, ClientDeadlineEndsTheRequest) {
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(200));
  auto stream = stub_->Generate(&context, Request(4000));
  v1::GenerateResponse response;
  while (stream->Read(&response)) {
  }
  EXPECT_EQ(stream->Finish().error_code(), grpc::DEADLINE_EXCEEDED);
  EXPECT_TRUE(Idle());
}

TEST_F(GrpcFrontTest, ModelInfoLoadAndDrain) {
  grpc::ClientContext c1, c2, c3;
  v1::ModelInfo info;
  ASSERT_TRUE(stub_->GetModelInfo(&c1, {}, &info).ok());
  EXPECT_EQ(info.numerics_id(), "n");
  EXPECT_EQ(info.vocab_size(), 1000);
  EXPECT_FALSE(info.has_tokenizer());
  v1::Load load;
  ASSERT_TRUE(stub_->GetLoad(&c2, {}, &load).ok());
  ASSERT_EQ(load.workers_size(), 1);
  EXPECT_TRUE(load.workers(0).alive());
  EXPECT_EQ(load.workers(0).role(), "decode");
  v1::DrainResponse drain;
  ASSERT_TRUE(stub_->Drain(&c3, {}, &drain).ok());
  EXPECT_EQ(ErrorOf(Request(1)).code(), absl::StatusCode::kUnavailable);
}

TEST_F(GrpcFrontTest, WithoutAKeyNothingIsAnswered) {
  auto front = *GrpcFront::Create(core_.get(), {.port = 0, .api_keys = {"secret"}});
  auto stub = v1::Router::NewStub(DialChannel(HostPort("127.0.0.1", front->port())));
  for (const char* key : {"", "Bearer wrong", "Bearer secret"}) {
    const bool right = std::string(key) == "Bearer secret";
    grpc::ClientContext unary, streaming;
    if (*key != 0) {
      unary.AddMetadata("authorization", key);
      streaming.AddMetadata("authorization", key);
    }
    v1::ModelInfo info;
    EXPECT_EQ(stub->GetModelInfo(&unary, {}, &info).error_code(),
              right ? grpc::OK : grpc::UNAUTHENTICATED);
    auto stream = stub->Generate(&streaming, Request(2));
    v1::GenerateResponse response;
    int responses = 0;
    while (stream->Read(&response)) ++responses;
    EXPECT_EQ(stream->Finish().error_code(), right ? grpc::OK : grpc::UNAUTHENTICATED);
    EXPECT_EQ(responses > 0, right);
  }
}

TEST_F(GrpcFrontTest, DrainAndAbortAreForAdmins) {
  auto front = *GrpcFront::Create(core_.get(), {.port = 0, .admin_keys = {"admin"}});
  auto stub = v1::Router::NewStub(DialChannel(HostPort("127.0.0.1", front->port())));
  for (const char* key : {"", "Bearer admin"}) {
    const bool admin = *key != 0;
    grpc::ClientContext generate, abort, drain;
    for (grpc::ClientContext* context : {&generate, &abort, &drain}) {
      if (admin) context->AddMetadata("authorization", key);
    }
    auto stream = stub->Generate(&generate, Request(2));
    v1::GenerateResponse response;
    while (stream->Read(&response)) {
    }
    EXPECT_TRUE(stream->Finish().ok()) << "of all";
    v1::AbortResponse found;
    EXPECT_EQ(stub->Abort(&abort, {}, &found).error_code(),
              admin ? grpc::OK : grpc::PERMISSION_DENIED);
    v1::DrainResponse drained;
    EXPECT_EQ(stub->Drain(&drain, {}, &drained).error_code(),
              admin ? grpc::OK : grpc::PERMISSION_DENIED);
  }
}

TEST_F(GrpcFrontTest, TakenPortIsNamed) {
  auto second = GrpcFront::Create(core_.get(), {.port = front_->port()});
  ASSERT_EQ(second.status().code(), absl::StatusCode::kAlreadyExists);
  EXPECT_NE(second.status().message().find(std::to_string(front_->port())),
            absl::string_view::npos);
}

}  // namespace
}  // namespace switchyard
