// The whole router process with a worker, as a client sees it.
#include <grpcpp/generic/generic_stub.h>
#include <gtest/gtest.h>

#include <thread>

#include "absl/time/clock.h"
#include "cluster/grpc_server.h"
#include "proto/inference.grpc.pb.h"
#include "router/router.h"
#include "router/test_worker.h"

namespace switchyard {
namespace {

constexpr char kModelDir[] = "models/fables-7m";

class RouterProcessTest : public ::testing::Test {
 protected:
  RouterProcessTest() : tokenizer_(*Tokenizer::Load(kModelDir)) {}
  RouterOptions Options(const std::string& decode) const {
    RouterOptions o;
    o.model_dir = kModelDir;
    o.http_port = o.grpc_port = 0;
    o.decode_addresses = {decode};
    return o;
  }
  // health v1's status of the whole server: 1 SERVING, 2 NOT_SERVING.
  static int Health(int port) {
    grpc::GenericStub stub(DialChannel(HostPort("127.0.0.1", port)));
    grpc::ClientContext context;
    grpc::CompletionQueue queue;
    grpc::ByteBuffer request(nullptr, 0), response;
    auto call = stub.PrepareUnaryCall(&context, "/grpc.health.v1.Health/Check", request, &queue);
    grpc::Status status;
    call->StartCall();
    call->Finish(&response, &status, nullptr);
    void* tag;
    bool ok;
    queue.Next(&tag, &ok);
    std::vector<grpc::Slice> slices;
    if (!status.ok() || !response.Dump(&slices).ok()) return -1;
    std::string bytes;
    for (const grpc::Slice& s : slices) bytes.append(s.begin(), s.end());
    return bytes.size() == 2 && bytes[0] == 8 ? bytes[1] : 0;  // field 1, varint
  }

  std::unique_ptr<Tokenizer> tokenizer_;
  TestWorker::Peers peers_;
};

TEST_F(RouterProcessTest, ServesTextAndDrains) {
  RouterOptions options = Options("127.0.0.1:1");
  const int vocab_size = [&] {
    auto router = RouterProcess::Create(options);
    EXPECT_TRUE(router.ok()) << router.status();
    EXPECT_EQ(Health((*router)->grpc_port()), 2);  // no worker
    return (*router)->core().model().vocab_size;
  }();
  TestWorker worker(&peers_, {.vocab_size = vocab_size, .max_model_len = 200});
  options.decode_addresses = {worker.address()};
  auto router = RouterProcess::Create(options);
  ASSERT_TRUE(router.ok()) << router.status();
  for (int i = 0; i < 1000 && !(*router)->core().status().ready; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  EXPECT_EQ((*router)->core().model().id, "fables-7m");
  EXPECT_EQ((*router)->core().model().max_model_len, 200);  // the worker's
  EXPECT_EQ(Health((*router)->grpc_port()), 1);
  EXPECT_GT((*router)->http_port(), 0);

  auto stub = v1::Router::NewStub(DialChannel(HostPort("127.0.0.1", (*router)->grpc_port())));
  grpc::ClientContext context;
  v1::GenerateRequest request;
  request.set_text("Once upon a time");
  request.set_max_tokens(20);
  auto stream = stub->Generate(&context, request);
  v1::GenerateResponse response;
  std::string text;
  std::vector<TokenId> tokens;
  while (stream->Read(&response)) {
    text += response.text();
    tokens.insert(tokens.end(), response.token_ids().begin(), response.token_ids().end());
  }
  ASSERT_TRUE(stream->Finish().ok());
  EXPECT_EQ(tokens, TestTokens(*tokenizer_->Encode(request.text(), true), 20, vocab_size));
  EXPECT_EQ(text, *tokenizer_->Decode(tokens, true));
  (*router)->Drain(absl::Seconds(5));
  EXPECT_EQ((*router)->core().status().not_ready_because, "draining");
}

// The engine is done long before the client has read: the drain waits for the client.
TEST_F(RouterProcessTest, DrainDeliversWhatASlowClientHasNotRead) {
  constexpr int kVocabSize = 4096, kTokens = 1900;
  TestWorker worker(
      &peers_, {.vocab_size = kVocabSize, .max_model_len = 2000, .step = absl::Microseconds(100)});
  auto router = RouterProcess::Create(Options(worker.address()));
  ASSERT_TRUE(router.ok()) << router.status();
  const auto eventually = [](const auto& condition) {
    for (int i = 0; i < 2000 && !condition(); ++i) {
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    return condition();
  };
  ASSERT_TRUE(eventually([&] { return (*router)->core().status().ready; }));
  // A window that does not grow, or gRPC's own buffers would take the whole answer.
  grpc::ChannelArguments args;
  args.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 0);
  args.SetInt(GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, 16 << 10);
  auto stub = v1::Router::NewStub(grpc::CreateCustomChannel(
      HostPort("127.0.0.1", (*router)->grpc_port()), grpc::InsecureChannelCredentials(), args));
  grpc::ClientContext context;
  v1::GenerateRequest request;
  request.mutable_tokens()->add_ids(1);
  request.set_max_tokens(kTokens);
  request.set_logprobs(0);
  auto stream = stub->Generate(&context, request);
  ASSERT_TRUE(eventually([&] { return worker.tokens_sent() == kTokens; }));
  ASSERT_TRUE(eventually([&] { return (*router)->core().status().running == 0; }));

  const absl::Time start = absl::Now();
  std::thread end([&] {
    (*router)->Drain(absl::Seconds(30));
    router->reset();
  });
  std::this_thread::sleep_for(std::chrono::milliseconds(300));
  v1::GenerateResponse response;
  int tokens = 0;
  while (stream->Read(&response)) tokens += response.token_ids_size();
  const grpc::Status status = stream->Finish();
  EXPECT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(tokens, kTokens);
  EXPECT_EQ(response.finish_reason(), v1::FINISH_REASON_LENGTH);
  end.join();
  EXPECT_LT(absl::Now() - start, absl::Seconds(20)) << "nobody was waited for";
}

TEST_F(RouterProcessTest, BadOptionsAndTakenPortsAreErrors) {
  RouterOptions options = Options("127.0.0.1:1");
  auto first = RouterProcess::Create(options);
  ASSERT_TRUE(first.ok());
  for (bool grpc : {true, false}) {
    RouterOptions taken = options;
    const int port = grpc ? (*first)->grpc_port() : (*first)->http_port();
    (grpc ? taken.grpc_port : taken.http_port) = port;
    auto second = RouterProcess::Create(taken);
    ASSERT_EQ(second.status().code(), absl::StatusCode::kAlreadyExists);
    EXPECT_NE(second.status().message().find(std::to_string(port)), absl::string_view::npos);
    taken.next_free_port = true;
    auto moved = RouterProcess::Create(taken);
    ASSERT_TRUE(moved.ok()) << moved.status();
    EXPECT_GT(grpc ? (*moved)->grpc_port() : (*moved)->http_port(), port);
  }
  RouterOptions bad = options;
  bad.max_model_len = 1 << 30;
  EXPECT_EQ(RouterProcess::Create(bad).status().code(), absl::StatusCode::kInvalidArgument);
  bad = options;
  bad.model_dir = "nowhere";
  EXPECT_FALSE(RouterProcess::Create(bad).ok());
  bad = options;
  bad.decode_addresses.clear();
  EXPECT_EQ(RouterProcess::Create(bad).status().code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace switchyard
