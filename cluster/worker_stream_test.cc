// Both halves of the router–worker stream over a real connection.
#include <gtest/gtest.h>

#include <optional>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "cluster/grpc_server.h"
#include "cluster/worker_client.h"
#include "cluster/worker_server.h"
#include "common/clock.h"

namespace switchyard {
namespace {

namespace pb = cluster::v1;

// What happened, as lines, waited for with a limit.
class Log {
 public:
  void Add(std::string line) {
    MutexLock lock(mu_);
    lines_.push_back(std::move(line));
    changed_.NotifyAll();
  }
  bool WaitFor(const std::string& line, int count = 1) {
    const MonotonicClock clock;
    const absl::Time until = clock.Now() + absl::Seconds(20);
    MutexLock lock(mu_);
    while (std::count(lines_.begin(), lines_.end(), line) < count) {
      if (clock.Now() > until) return false;
      changed_.WaitFor(mu_, absl::Milliseconds(100));
    }
    return true;
  }
  int Count(const std::string& line) {
    MutexLock lock(mu_);
    return static_cast<int>(std::count(lines_.begin(), lines_.end(), line));
  }

 private:
  Mutex mu_;
  CondVar changed_;
  std::vector<std::string> lines_ ABSL_GUARDED_BY(mu_);
};

struct TestWorker {
  explicit TestWorker(int port = 0, WorkerServerOptions options = {})
      : service(Callbacks(), options) {
    absl::StatusOr<std::unique_ptr<GrpcServer>> listening =
        GrpcServer::Listen({.port = port}, {&service});
    EXPECT_TRUE(listening.ok()) << listening.status();
    server = *std::move(listening);
  }
  WorkerCallbacks Callbacks() {
    return {
        .registration =
            [] {
              pb::Registration r;
              r.set_role(pb::ROLE_DECODE);
              return r;
            },
        .heartbeat = [this] { return stands ? std::nullopt : std::optional(pb::Heartbeat()); },
        .on_submit =
            [this](SessionId s, pb::Submit submit) {
              session = s;
              log.Add("submit " + submit.id().request());
            },
        .on_abort = [this](SessionId, const AttemptKey& key) { log.Add("abort " + key.request); },
        .on_session_end =
            [this](SessionId, std::vector<AttemptKey> open) {
              std::string line = "end";
              for (const AttemptKey& key : open) line += " " + key.request;
              log.Add(line);
            }};
  }
  std::string address() const { return HostPort("127.0.0.1", server->port()); }

  Log log;
  std::atomic<SessionId> session;
  std::atomic<bool> stands{false};
  WorkerServer service;
  std::unique_ptr<GrpcServer> server;
};

struct TestRouter {
  explicit TestRouter(const std::string& address)
      : client(address, "r1",
               {.registered =
                    [this](StreamId s, pb::Registration) {
                      stream = s;
                      log.Add("registered");
                    },
                .events =
                    [this](StreamId, const std::shared_ptr<const pb::StepEvents>& events) {
                      ++messages;
                      for (const pb::AttemptEvent& e : events->events()) {
                        log.Add("event " + e.id().request() + " " + std::to_string(e.index()));
                      }
                    },
                .heartbeat = [this](StreamId, const pb::Heartbeat&) { log.Add("heartbeat"); },
                .lost = [this](StreamId, const absl::Status&) { log.Add("lost"); },
                .away = [this](const absl::Status&) { log.Add("away"); }}) {}
  bool Submit(const std::string& request) {
    pb::ToWorker m;
    ToProto(AttemptKey{request, 1}, m.mutable_submit()->mutable_id());
    return client.Send(stream, std::move(m));
  }

  Log log;
  std::atomic<StreamId> stream;
  std::atomic<int> messages{0};  // with events
  WorkerClient client;
};

pb::AttemptEvent Token(const std::string& request, int index, bool last) {
  pb::AttemptEvent e;
  ToProto(AttemptKey{request, 1}, e.mutable_id());
  e.set_index(index);
  e.mutable_token()->set_token(index);
  if (last) e.set_finish(pb::FINISH_LENGTH);
  return e;
}

TEST(WorkerStreamTest, CarriesRequestsDownAndTokensUp) {
  TestWorker worker;
  TestRouter router(worker.address());
  ASSERT_TRUE(router.log.WaitFor("registered"));
  ASSERT_TRUE(router.log.WaitFor("heartbeat", 3));
  ASSERT_TRUE(router.Submit("a"));
  ASSERT_TRUE(worker.log.WaitFor("submit a"));
  for (int i = 0; i < 1000; ++i)
    worker.service.SendAll({{worker.session, Token("a", i, i == 999)}});
  ASSERT_TRUE(router.log.WaitFor("event a 999"));
}

TEST(WorkerStreamTest, WhatIsSentTogetherGoesInOneMessage) {
  TestWorker worker(/*port=*/0, {.heartbeat_every = absl::Hours(1)});  // but for the first one
  TestRouter router(worker.address());
  ASSERT_TRUE(router.log.WaitFor("heartbeat"));
  // A writer that has not gone to sleep yet may take what is there so far: hardly each time.
  for (const char* name : {"a", "b", "c", "d", "e"}) {
    const int before = router.messages;
    ASSERT_TRUE(router.Submit(name));
    ASSERT_TRUE(worker.log.WaitFor(absl::StrCat("submit ", name)));
    std::vector<WorkerServer::Addressed> events;
    for (int i = 0; i < 1000; ++i) events.emplace_back(worker.session, Token(name, i, i == 999));
    events.emplace_back(SessionId(99), Token("nobody", 0, true));
    worker.service.SendAll(std::move(events));
    ASSERT_TRUE(router.log.WaitFor(absl::StrCat("event ", name, " 999")));
    if (router.messages == before + 1) return;
  }
  ADD_FAILURE() << router.messages << " messages of five times 1000 events";
}

TEST(WorkerStreamTest, WorkerThatStandsStillIsSilentAndKeepsItsStream) {
  TestWorker worker;
  TestRouter router(worker.address());
  ASSERT_TRUE(router.log.WaitFor("heartbeat"));
  worker.stands = true;
  int before = -1;  // one may be on its way
  for (int i = 0; i < 10 && router.log.Count("heartbeat") != before; ++i) {
    before = router.log.Count("heartbeat");
    absl::SleepFor(absl::Milliseconds(600));
  }
  EXPECT_EQ(router.log.Count("heartbeat"), before);
  worker.stands = false;
  EXPECT_TRUE(router.log.WaitFor("heartbeat", before + 1));
  EXPECT_EQ(router.log.Count("lost"), 0);
}

// Its old stream may seem alive for long: what it held must not keep it out.
TEST(WorkerStreamTest, RouterThatDialsAgainTakesThePlaceOfItsOldStream) {
  TestWorker worker(/*port=*/0, {.sessions_max = 1});
  TestRouter old(worker.address());
  ASSERT_TRUE(old.log.WaitFor("registered"));
  TestRouter again(worker.address());
  EXPECT_TRUE(again.log.WaitFor("registered"));
}

TEST(WorkerStreamTest, SessionEndNamesTheAttemptsStillOpen) {
  TestWorker worker;
  {
    TestRouter router(worker.address());
    ASSERT_TRUE(router.log.WaitFor("registered"));
    for (const char* name : {"done", "aborted", "open"}) ASSERT_TRUE(router.Submit(name));
    pb::ToWorker abort;
    ToProto(AttemptKey{"aborted", 1}, abort.mutable_abort()->mutable_id());
    ASSERT_TRUE(router.client.Send(router.stream, abort));
    ASSERT_TRUE(worker.log.WaitFor("abort aborted"));
    worker.service.SendAll({{worker.session, Token("done", 0, true)}});
    ASSERT_TRUE(router.log.WaitFor("event done 0"));
  }
  EXPECT_TRUE(worker.log.WaitFor("end open"));
}

TEST(WorkerStreamTest, RouterComesBackAfterTheWorkerRestarts) {
  std::optional<TestWorker> worker(std::in_place);
  const int port = worker->server->port();
  TestRouter router(worker->address());
  ASSERT_TRUE(router.log.WaitFor("registered"));
  const StreamId old = router.stream;
  worker.reset();
  ASSERT_TRUE(router.log.WaitFor("lost"));
  worker.emplace(port);
  ASSERT_TRUE(router.log.WaitFor("registered", 2));
  EXPECT_NE(router.stream.load(), old);
  pb::ToWorker m;
  ToProto(AttemptKey{"x", 1}, m.mutable_submit()->mutable_id());
  EXPECT_FALSE(router.client.Send(old, m));  // meant for the worker that died
  EXPECT_TRUE(router.client.Send(router.stream, m));
}

TEST(WorkerStreamTest, WrongVersionAndTooManyAttemptsAreRefused) {
  TestWorker worker(0, {.attempts_max = 1});
  {
    grpc::ClientContext context;
    auto stub = pb::Worker::NewStub(DialChannel(worker.address()));
    auto stream = stub->Session(&context);
    pb::ToWorker hello;
    hello.mutable_hello()->set_wire_version(99);
    stream->Write(hello);
    pb::FromWorker answer;
    EXPECT_FALSE(stream->Read(&answer));
    EXPECT_EQ(stream->Finish().error_code(), grpc::FAILED_PRECONDITION);
  }
  TestRouter router(worker.address());
  ASSERT_TRUE(router.log.WaitFor("registered"));
  ASSERT_TRUE(router.Submit("a"));
  ASSERT_TRUE(router.Submit("b"));
  EXPECT_TRUE(router.log.WaitFor("event b 0"));  // the refusal
}

// How a stream ends that says nothing.
grpc::StatusCode EndOfSilent(const std::string& address) {
  grpc::ClientContext context;
  auto stub = pb::Worker::NewStub(DialChannel(address));
  auto stream = stub->Session(&context);
  pb::FromWorker answer;
  EXPECT_FALSE(stream->Read(&answer));
  return stream->Finish().error_code();
}

TEST(WorkerStreamTest, WhoNeverSaysHelloIsSentAwayAndHoldsBackNobody) {
  TestWorker worker(0, {.greetings_max = 2, .hello_wait = absl::Seconds(2)});
  std::atomic<int> cancelled = 0, refused = 0;
  std::vector<std::thread> silent;
  for (int i = 0; i < 4; ++i) {
    silent.emplace_back([&] {
      const grpc::StatusCode code = EndOfSilent(worker.address());
      cancelled += code == grpc::CANCELLED;
      refused += code == grpc::RESOURCE_EXHAUSTED;
    });
  }
  for (std::thread& t : silent) t.join();
  EXPECT_EQ(cancelled, 2);
  EXPECT_EQ(refused, 2);
  EXPECT_EQ(worker.service.sessions(), 0);
  TestRouter router(worker.address());
  EXPECT_TRUE(router.log.WaitFor("registered"));
}

// As a later minor version may send: what is not known is no reason to refuse.
TEST(WorkerStreamTest, FieldsThatAreNotKnownAreIgnored) {
  TestWorker worker;
  grpc::ClientContext context;
  auto stub = pb::Worker::NewStub(DialChannel(worker.address()));
  auto stream = stub->Session(&context);
  pb::ToWorker hello;
  hello.mutable_hello()->set_wire_version(kClusterWireVersion);
  hello.mutable_hello()->set_router_id("later");
  auto* unknown = hello.GetReflection()->MutableUnknownFields(&hello);
  unknown->AddVarint(1000, 7);
  pb::RouterHello* inner = hello.mutable_hello();
  inner->GetReflection()->MutableUnknownFields(inner)->AddLengthDelimited(1001, "more");
  ASSERT_TRUE(stream->Write(hello));
  pb::FromWorker answer;
  ASSERT_TRUE(stream->Read(&answer));
  EXPECT_TRUE(answer.has_registration());
  context.TryCancel();
  (void)stream->Finish();
}

TEST(GrpcServerTest, TakenPortIsAnErrorOrMovesOn) {
  TestWorker first;
  WorkerServer other(first.Callbacks());
  const int port = first.server->port();
  auto taken = GrpcServer::Listen({.port = port}, {&other});
  ASSERT_EQ(taken.status().code(), absl::StatusCode::kAlreadyExists);
  EXPECT_NE(taken.status().message().find(std::to_string(port)), absl::string_view::npos);
  auto moved = GrpcServer::Listen({.port = port, .next_free_port = true}, {&other});
  ASSERT_TRUE(moved.ok()) << moved.status();
  EXPECT_GT((*moved)->port(), port);
  EXPECT_FALSE(GrpcServer::Listen({.port = 70000}, {&other}).ok());
}

}  // namespace
}  // namespace switchyard
