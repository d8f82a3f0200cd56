// Calls to a real server: answers on the loop, a server's advice, and an end with calls under way.
#include "prefill/grpc_handoff_channel.h"

#include <gtest/gtest.h>

#include <atomic>
#include <memory>
#include <optional>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "cluster/convert.h"
#include "cluster/grpc_server.h"
#include "common/mailbox.h"

namespace switchyard {
namespace {

namespace pb = handoff::v1;
using Loop = Mailbox<std::function<void()>>;

class Service final : public pb::Handoff::Service {
 public:
  grpc::Status Hello(grpc::ServerContext*, const pb::HelloRequest* request,
                     pb::HelloResponse* response) override {
    response->set_lane(request->peer_name());
    return grpc::Status::OK;
  }
  grpc::Status Reserve(grpc::ServerContext* context, const pb::ReserveRequest*,
                       pb::ReserveResponse*) override {
    context->AddTrailingMetadata(kRetryAfterKey, "70");
    return grpc::Status(grpc::StatusCode::RESOURCE_EXHAUSTED, "no blocks");
  }
  grpc::Status Commit(grpc::ServerContext* context, const pb::CommitRequest*,
                      pb::CommitResponse*) override {
    committing.Notify();
    while (!context->IsCancelled()) absl::SleepFor(absl::Milliseconds(1));
    return grpc::Status::CANCELLED;
  }
  absl::Notification committing;
};

class GrpcHandoffChannelTest : public testing::Test {
 protected:
  GrpcHandoffChannelTest() {
    auto server = GrpcServer::Listen({}, {&service_});
    EXPECT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    channel_.emplace(absl::StrCat("127.0.0.1:", server_->port()), TlsOptions{},
                     [loop = loop_](std::function<void()> f) { (void)loop->Post(std::move(f)); });
  }
  void RunOne() {
    for (const auto& f : loop_->Take(absl::Seconds(20))) f();
  }

  Service service_;
  std::unique_ptr<GrpcServer> server_;
  const std::shared_ptr<Loop> loop_ = std::make_shared<Loop>(8);
  std::optional<GrpcHandoffChannel> channel_;
};

TEST_F(GrpcHandoffChannelTest, AnswersComeOnTheLoop) {
  absl::StatusOr<pb::HelloResponse> hello = absl::UnknownError("none yet");
  pb::HelloRequest request;
  request.set_peer_name("prefill-0");
  channel_->Hello(request, absl::Seconds(20), [&](auto answer) { hello = std::move(answer); });
  RunOne();
  ASSERT_TRUE(hello.ok()) << hello.status();
  EXPECT_EQ(hello->lane(), "prefill-0");
}

TEST_F(GrpcHandoffChannelTest, ARefusalBringsTheAdvice) {
  absl::Status refused;
  channel_->Reserve({}, absl::Seconds(20), [&](auto answer) { refused = answer.status(); });
  RunOne();
  EXPECT_TRUE(absl::IsResourceExhausted(refused)) << refused;
  EXPECT_EQ(RetryAfter(refused), absl::Milliseconds(70));
}

TEST_F(GrpcHandoffChannelTest, ADeadlineEndsACall) {
  absl::Status late;
  channel_->Commit({}, absl::Milliseconds(50), [&](auto answer) { late = answer.status(); });
  RunOne();
  EXPECT_TRUE(absl::IsDeadlineExceeded(late)) << late;
}

// A context left over would end the channel on a thread of gRPC's.
TEST_F(GrpcHandoffChannelTest, NothingOfACallOutlivesIt) {
  std::atomic<bool> called{false}, gone{false};
  auto slow_to_go = std::shared_ptr<void>(nullptr, [&gone](void*) {
    absl::SleepFor(absl::Milliseconds(50));
    gone = true;
  });
  channel_->Commit({}, absl::Seconds(20),
                   [&called, kept = std::move(slow_to_go)](const auto&) { called = true; });
  service_.committing.WaitForNotification();
  channel_.reset();
  EXPECT_TRUE(gone);
  for (const auto& f : loop_->Take(absl::ZeroDuration())) f();
  EXPECT_FALSE(called);
}

}  // namespace
}  // namespace switchyard
