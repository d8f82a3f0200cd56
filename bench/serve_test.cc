// The driver against servers that answer at once, stall, refuse or go away: real gRPC and HTTP.
#include "bench/serve.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <boost/asio/buffer.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/read_until.hpp>
#include <boost/asio/write.hpp>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "bench/stub_router.h"
#include "bench/sweep.h"
#include "bench/verdict.h"
#include "common/clock.h"
#include "common/net/http_server.h"

namespace switchyard {
namespace {

namespace asio = boost::asio;

BenchServeOptions OptionsFor(int port) {
  BenchServeOptions o;
  o.backend.address = absl::StrCat("127.0.0.1:", port);
  o.backend.timeout = absl::Seconds(20);
  o.workload.input_len = 4;
  o.workload.output_len = 3;
  return o;
}

std::unique_ptr<StubRouter> Stub(StubRouterOptions options = {}) {
  auto stub = StubRouter::Create(options);
  EXPECT_TRUE(stub.ok()) << stub.status();
  return *std::move(stub);
}

TEST(BenchServeTest, CountsWhatWasSentAndAnswered) {
  const auto stub = Stub();
  BenchServeOptions o = OptionsFor(stub->port());
  o.workload.prompts = 200;
  o.warmups = 2;
  const auto r = RunBenchServe(o);
  ASSERT_TRUE(r.ok()) << r.status();
  EXPECT_EQ((*r)["completed"], 200);
  EXPECT_EQ((*r)["total_output_tokens"], 600);
  EXPECT_EQ((*r)["total_input_tokens"], 800);
  EXPECT_EQ((*r)["model_id"], "stub");
  EXPECT_EQ((*r)["failed"], 0) << ReportText(*r);
  EXPECT_GT((*r)["median_ttft_ms"].get<double>(), 0);
}

// The server stands still for a second. A driver that waits for answers before it sends would see
// one slow request; users would see all that come in that second.
class StallTest : public testing::TestWithParam<int> {};
TEST_P(StallTest, AStallShowsInThePercentiles) {
  const auto stub = Stub({.stall_after = absl::Seconds(1), .stall = absl::Seconds(1)});
  BenchServeOptions o = OptionsFor(stub->port());
  o.workload.prompts = 200;
  o.workload.request_rate = 50;  // 4 s, a quarter of it stalled
  o.workload.burstiness = 1000;  // evenly
  o.max_concurrency = GetParam();
  const auto r = RunBenchServe(o);
  ASSERT_TRUE(r.ok()) << r.status();
  // Waits of 0 to 1 s, evenly, for a quarter of the requests.
  EXPECT_GT((*r)["p99_ttft_ms"].get<double>(), 850) << ReportText(*r);
  EXPECT_GT((*r)["p90_ttft_ms"].get<double>(), 400);
  EXPECT_LT((*r)["median_ttft_ms"].get<double>(), 400);
  if (o.max_concurrency > 0) {
    EXPECT_GT((*r)["sent_late"].get<int>(), 40 - o.max_concurrency);
    EXPECT_GT((*r)["held_back"].get<int>(), 40 - o.max_concurrency);
    EXPECT_FALSE((*r)["notes"].empty());
    // They waited for room: but for those that the machine held up, it was not the driver's fault.
    EXPECT_LT((*r)["driver_late"].get<int>(), (*r)["sent_late"].get<int>() / 2);
  }
}
INSTANTIATE_TEST_SUITE_P(OpenAndHeldBack, StallTest, testing::Values(0, 1, 4));

TEST(BenchServeTest, FailuresAreCountedAndJudged) {
  const auto stub = Stub({.fail_all = true});
  BenchServeOptions o = OptionsFor(stub->port());
  o.workload.prompts = 20;
  const auto r = RunBenchServe(o);
  ASSERT_TRUE(r.ok()) << r.status();
  EXPECT_EQ((*r)["failed"], 20);
  EXPECT_EQ((*r)["verdict"], "INVALID");
  EXPECT_EQ((*r)["error_counts"]["8: no room"], 20);
  o.warmups = 1;
  EXPECT_EQ(RunBenchServe(o).status().message(), "warm-up: 8: no room");
}

TEST(BenchServeTest, AnInterruptLeavesWhatThereIs) {
  const auto stub = Stub({.stall_after = absl::Milliseconds(200), .stall = absl::Seconds(60)});
  BenchServeOptions o = OptionsFor(stub->port());
  o.workload.prompts = 100000;
  o.workload.request_rate = 200;
  const absl::Time end = absl::Now() + absl::Seconds(1);
  o.stop = [end] { return absl::Now() > end; };
  const auto r = RunBenchServe(o);
  ASSERT_TRUE(r.ok()) << r.status();
  EXPECT_LT(absl::Now() - end, absl::Seconds(5)) << "waited for the stalled ones";
  EXPECT_GT((*r)["completed"].get<int>(), 10);
  EXPECT_GT((*r)["interrupted"].get<int>(), 50);
  EXPECT_EQ((*r)["dropped"], 0) << "nobody wanted that";
  EXPECT_EQ((*r)["verdict"], "INVALID");
  EXPECT_TRUE((*r)["verdict_reasons"][0].get<std::string>().starts_with("interrupted: "));
}

TEST(BenchServeTest, SaysThatNobodyAnswers) {
  BenchServeOptions o = OptionsFor(1);
  o.ready_limit = absl::Milliseconds(200);
  EXPECT_EQ(RunBenchServe(o).status().code(), absl::StatusCode::kUnavailable);
  o.openai = true;
  EXPECT_EQ(RunBenchServe(o).status().code(), absl::StatusCode::kUnavailable);
  // What is wrong with an option needs no server.
  o.workload.burstiness = 0;
  EXPECT_EQ(RunBenchServe(o).status().message(), "--burstiness is 0, must be greater than 0");
}

TEST(SweepTest, StopsAtTheRateThatTheServerKeeps) {
  const auto stub = Stub();
  BenchServeOptions o = OptionsFor(stub->port());
  o.report.goodput = *ParseGoodput({"ttft:1000"});
  const auto r = RunSweep(o, {.start_rate = 20,
                              .rate_max = 40,
                              .attainment = 0.95,
                              .seconds = 0.5,
                              .trial_done = nullptr});
  ASSERT_TRUE(r.ok()) << r.status();
  // A busy machine may keep the driver itself from one of the two rates.
  double best = 0;
  for (const auto& trial : (*r)["trials"]) {
    EXPECT_GE(trial["report"]["completed"].get<int>(), 20);
    if (trial["met"].get<bool>()) best = std::max(best, trial["rate"].get<double>());
  }
  EXPECT_EQ((*r)["max_rate"].get<double>(), best);
  EXPECT_EQ((*r)["trials"][0]["rate"], 20.0);
  EXPECT_FALSE(RunSweep(OptionsFor(stub->port()), {}).ok()) << "no --goodput";
  BenchServeOptions ramp = o;
  ramp.workload.ramp_up = WorkloadOptions::RampUp::kLinear;
  EXPECT_EQ(RunSweep(ramp, {}).status().message(),
            "sweep: --ramp-up-strategy has rates of its own");
}

// In the warm-up or in a trial: what was measured before stays.
TEST(SweepTest, AnInterruptKeepsTheTrials) {
  const auto stub = Stub();
  BenchServeOptions o = OptionsFor(stub->port());
  o.report.goodput = *ParseGoodput({"ttft:1000"});
  o.warmups = 5;
  int trials = 0;
  o.stop = [&] { return trials > 0; };
  const auto r = RunSweep(
      o, {.start_rate = 50, .attainment = 0.95, .seconds = 0.1, .trial_done = [&](const auto&) {
            ++trials;
          }});
  ASSERT_TRUE(r.ok()) << r.status();
  EXPECT_EQ((*r)["trials"].size(), 1u);
  EXPECT_EQ((*r)["limit"], "interrupted");
}

// A server of OpenAI's HTTP: three chunks, usage, [DONE].
class HttpStub {
 public:
  HttpStub() {
    HttpServerOptions options;
    auto server = HttpServer::Create(
        options, {{"GET", "/v1/models", Models},
                  {"GET", "/metrics",
                   [this](const HttpRequest&, Responder responder) { Metrics(*responder); }},
                  {"POST", "/v1/completions", [this](const HttpRequest& request, auto responder) {
                     Complete(request, *responder);
                   }}});
    EXPECT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
  }
  int port() const { return server_->port(); }
  std::atomic<bool> refuse = false, cut = false;
  std::string gauge = "vllm:num_requests_running";

 private:
  using Responder = std::shared_ptr<HttpResponder>;
  static void Models(const HttpRequest&, Responder responder) {
    HttpResponse response;
    response.body = R"({"object":"list","data":[{"id":"m","max_model_len":64}]})";
    responder->Send(std::move(response));
  }
  void Metrics(HttpResponder& responder) const {
    HttpResponse response;
    response.body = gauge + "{a=\"b\"} 3\n";
    responder.Send(std::move(response));
  }
  void Complete(const HttpRequest& request, HttpResponder& responder) {
    EXPECT_NE(request.body.find("\"prompt\":["), std::string::npos) << request.body;
    if (refuse) {
      responder.Send(HttpError(429, "slow down"));
      return;
    }
    HttpResponse head;
    head.content_type = "text/event-stream";
    responder.StartStream(std::move(head));
    for (int i = 0; i < 3; ++i) {
      const char* reason = i < 2 || cut ? "null" : "\"length\"";
      responder.Write(
          absl::StrCat(R"(data: {"choices":[{"text":"a","finish_reason":)", reason, "}]}\n\n"));
    }
    if (!cut) responder.Write("data: {\"choices\":[],\"usage\":{\"completion_tokens\":5}}\n\n");
    responder.Write("data: [DONE]\n\n");
    responder.End();
  }
  std::unique_ptr<HttpServer> server_;
};

// A driver whose thread is behind must not look like a slow server.
TEST(BenchServeTest, WhatWaitsForTheThreadOfTheClientIsLate) {
  HttpStub stub;
  const MonotonicClock clock;
  BenchServeOptions o = OptionsFor(stub.port());
  o.openai = true;
  const auto backend = MakeBackend(o, &clock);
  ASSERT_TRUE(backend->AwaitReady(absl::Seconds(10)).ok());
  const auto request = [&] {
    LoadRequest r;
    r.item.prompt_ids = {1, 2};
    r.item.output_len = 3;
    r.start = clock.Now();
    return r;
  };
  absl::Notification blocks, go_on, ended;
  backend->Start(request(), [&](RequestRecord) {
    blocks.Notify();
    go_on.WaitForNotification();
  });
  blocks.WaitForNotification();
  absl::Duration late;
  backend->Start(request(), [&](RequestRecord record) {
    late = record.sent_late;
    ended.Notify();
  });
  absl::SleepFor(2 * kLateAfter);
  go_on.Notify();
  ended.WaitForNotification();
  EXPECT_GT(late, kLateAfter);
}

// Answers with the same piece again and again, as fast as it is taken, one client at a time.
class Flooder {
 public:
  explicit Flooder(std::string piece)
      : piece_(std::move(piece)),
        acceptor_(io_, {asio::ip::address_v4::loopback(), 0}),
        thread_([this] { Run(); }) {}
  ~Flooder() {
    done_ = true;
    asio::ip::tcp::socket(io_).connect(acceptor_.local_endpoint());
    thread_.join();
  }
  int port() const { return acceptor_.local_endpoint().port(); }

 private:
  void Run() {
    for (;;) {
      asio::ip::tcp::socket client = acceptor_.accept();
      if (done_) return;
      boost::system::error_code gone;
      std::string head;
      asio::read_until(client, asio::dynamic_buffer(head), "\r\n\r\n", gone);
      if (head.starts_with("GET")) {
        Write(client, "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{\"data\":[{\"id\":\"m\"}]}");
        continue;
      }
      if (!Write(client, "HTTP/1.1 200 OK\r\n\r\n")) continue;
      while (Write(client, piece_)) continue;
    }
  }
  static bool Write(asio::ip::tcp::socket& client, const std::string& text) {
    boost::system::error_code gone;
    asio::write(client, asio::buffer(text), gone);
    return !gone;
  }

  const std::string piece_;
  asio::io_context io_;
  asio::ip::tcp::acceptor acceptor_;
  std::atomic<bool> done_ = false;
  std::thread thread_;
};

// Each ends, and soon: at the bound of a line, of the events, or of the time.
TEST(BenchServeTest, AServerThatNeverEndsIsGivenUp) {
  const std::string event = "data: {\"choices\":[{\"text\":\"a\"}]}\n\n";
  const std::pair<std::string, const char*> floods[] = {
      {std::string(1 << 16, 'x'), "an event is longer than 1 MiB"},
      {event, kEndless},
      {":\n" + std::string(1 << 16, '\n'), "read: "}};
  for (const auto& [flood, why] : floods) {
    Flooder server(flood);
    BenchServeOptions o = OptionsFor(server.port());
    o.openai = true;
    o.workload.prompts = 1;
    o.backend.timeout = absl::Seconds(1);
    const auto r = RunBenchServe(o);
    ASSERT_TRUE(r.ok()) << r.status();
    EXPECT_EQ((*r)["failed"], 1) << ReportText(*r);
    EXPECT_EQ((*r)["dropped"], 0);
    EXPECT_TRUE((*r)["error_counts"].begin().key().starts_with(why)) << ReportText(*r);
  }
}

TEST(BenchServeTest, AnAnswerFarTooLongIsGivenUp) {
  const auto stub = Stub({.tokens_extra = 1000});
  BenchServeOptions o = OptionsFor(stub->port());
  o.workload.prompts = 3;
  const auto r = RunBenchServe(o);
  ASSERT_TRUE(r.ok()) << r.status();
  EXPECT_EQ((*r)["error_counts"][kEndless], 3) << ReportText(*r);
  EXPECT_EQ((*r)["dropped"], 0);
}

// A context left over would end its channel on a thread of gRPC's.
TEST(BenchServeTest, NothingOfARequestOutlivesTheBackend) {
  const auto stub = Stub();
  const MonotonicClock clock;
  auto backend = MakeBackend(OptionsFor(stub->port()), &clock);
  ASSERT_TRUE(backend->AwaitReady(absl::Seconds(20)).ok());
  std::atomic<bool> answered{false}, gone{false};
  auto slow_to_go = std::shared_ptr<void>(nullptr, [&gone](void*) {
    absl::SleepFor(absl::Milliseconds(50));
    gone = true;
  });
  LoadRequest request;
  request.item.prompt_ids = {1, 2};
  request.item.output_len = 2;
  backend->Start(std::move(request), [&answered, kept = std::move(slow_to_go)](
                                         const RequestRecord&) { answered = true; });
  backend.reset();
  EXPECT_TRUE(answered);
  EXPECT_TRUE(gone);
}

TEST(BenchServeTest, SaysThatMetricsDoNotAnswer) {
  const auto stub = Stub();
  HttpStub without;
  without.gauge = "other";
  for (const std::string& address :
       {std::string("127.0.0.1:1"), absl::StrCat("127.0.0.1:", without.port())}) {
    BenchServeOptions o = OptionsFor(stub->port());
    o.workload.prompts = 50;
    o.workload.request_rate = 100;
    o.metrics_address = address;
    std::atomic<int> warnings = 0;
    o.warn = [&](const std::string&) { ++warnings; };
    const auto r = RunBenchServe(o);
    ASSERT_TRUE(r.ok()) << r.status();
    EXPECT_EQ(warnings, 1);
    EXPECT_NE(ReportText(*r).find("readings of --metrics-address " + address + " failed"),
              std::string::npos)
        << ReportText(*r);
  }
}

TEST(BenchServeTest, SpeaksOpenAi) {
  HttpStub stub;
  BenchServeOptions o = OptionsFor(stub.port());
  o.openai = true;
  o.workload.prompts = 150;
  o.max_concurrency = 8;
  o.metrics_address = o.backend.address;
  const auto r = RunBenchServe(o);
  ASSERT_TRUE(r.ok()) << r.status();
  EXPECT_EQ((*r)["completed"], 150) << ReportText(*r);
  EXPECT_EQ((*r)["total_output_tokens"], 750) << "of the usage, not of the chunks";
  EXPECT_EQ((*r)["model_id"], "m");
  EXPECT_EQ((*r)["server"]["running"][0], 3);
  o.metrics_address = "";
  o.workload.prompts = 5;
  stub.cut = true;
  EXPECT_EQ((*RunBenchServe(o))["error_counts"]["the stream ended without a finish reason"], 5);
  stub.refuse = true;
  const auto refused = *RunBenchServe(o);
  EXPECT_EQ(refused["failed"], 5);
  EXPECT_TRUE(refused["error_counts"].begin().key().starts_with("429: ")) << ReportText(refused);
  o.backend.model = "other";
  EXPECT_EQ(RunBenchServe(o).status().code(), absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace switchyard
