#include "common/telemetry/span_export.h"

#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/net/http_server.h"

namespace switchyard {
namespace {

using Json = nlohmann::json;
constexpr TraceContext kParent{0x0af7651916cd43dd, 0x8448eb211c80319c, 0xb7ad6b7169203331, true};

std::vector<std::unique_ptr<SpanOutput>> Outputs(absl::StatusOr<std::unique_ptr<SpanOutput>> one) {
  std::vector<std::unique_ptr<SpanOutput>> out;
  out.push_back(*std::move(one));
  return out;
}

TEST(SpanExportTest, WritesWhatACollectorReads) {
  const std::string path = testing::TempDir() + "/spans.jsonl";
  const MonotonicClock clock;
  {
    SpanExport spans("switchyard-router", "router-0", &clock, nullptr, Outputs(OpenSpanFile(path)));
    const TraceContext own = spans.Begin(kParent);
    EXPECT_EQ(TraceId(own), TraceId(kParent));
    EXPECT_NE(own.span, kParent.span);
    const absl::Time end = clock.Now();
    spans.Record({own,
                  kParent.span,
                  "request",
                  end - absl::Seconds(2),
                  end,
                  {{"request", "r\n\xff"}},
                  "lost"});
    TraceContext unsampled = spans.Begin(kParent);
    unsampled.sampled = false;
    spans.Record({unsampled, 0, "unseen", end, end, {}, ""});
    EXPECT_TRUE(spans.Begin({}).valid()) << "a trace of its own";
    EXPECT_EQ(spans.lost(), 0u);
  }
  std::ifstream in(path);
  std::string line, more;
  ASSERT_TRUE(std::getline(in, line));
  EXPECT_FALSE(std::getline(in, more));
  const auto json = Json::parse(line)["resourceSpans"][0];
  EXPECT_EQ(json["resource"]["attributes"][0]["value"]["stringValue"], "switchyard-router");
  EXPECT_EQ(json["resource"]["attributes"][1]["value"]["stringValue"], "router-0");
  ASSERT_EQ(json["scopeSpans"][0]["spans"].size(), 1u);
  const auto span = json["scopeSpans"][0]["spans"][0];
  EXPECT_EQ(span["traceId"], "0af7651916cd43dd8448eb211c80319c");
  EXPECT_EQ(span["parentSpanId"], "b7ad6b7169203331");
  EXPECT_EQ(span["status"]["code"], 2);
  const int64_t start = std::stoll(span["startTimeUnixNano"].get<std::string>());
  const int64_t end = std::stoll(span["endTimeUnixNano"].get<std::string>());
  EXPECT_EQ(end - start, 2'000'000'000);
  EXPECT_LT(std::abs(absl::ToInt64Nanoseconds(absl::Now() - absl::FromUnixNanos(end))),
            60'000'000'000)
      << "the wall clock's";
}

TEST(SpanExportTest, WhatCannotBeIsAnError) {
  EXPECT_FALSE(OpenSpanFile("/nowhere/spans").ok());
  for (const char* url : {"", "localhost:4318", "https://localhost:4318", "http://", "http:///x"}) {
    EXPECT_FALSE(MakeOtlpOutput(url).ok()) << url;
  }
}

// A collector that answers with `status`.
class Collector {
 public:
  explicit Collector(int status) {
    const auto take = [this, status](const HttpRequest& request,
                                     std::shared_ptr<HttpResponder> responder) {
      MutexLock lock(mu_);
      bodies_.push_back(Json::parse(request.body));
      types_.emplace_back(request.Header("content-type"));
      HttpResponse answer;
      answer.status = status;
      answer.body = "{}";
      responder->Send(std::move(answer));
    };
    server_ = *HttpServer::Create({}, {{"POST", "/v1/traces", take}});
  }
  std::string url() const { return absl::StrCat("http://127.0.0.1:", server_->port()); }
  std::vector<Json> bodies() {
    MutexLock lock(mu_);
    return bodies_;
  }
  std::vector<std::string> types() {
    MutexLock lock(mu_);
    return types_;
  }

 private:
  Mutex mu_;
  std::vector<Json> bodies_ ABSL_GUARDED_BY(mu_);
  std::vector<std::string> types_ ABSL_GUARDED_BY(mu_);
  std::unique_ptr<HttpServer> server_;
};

Span SpanOf(SpanExport& spans) { return {spans.Begin({}), 0, "s", {}, {}, {}, ""}; }

TEST(SpanExportTest, PostsToACollectorInBoundedRequests) {
  Collector collector(200);
  const MonotonicClock clock;
  {
    SpanExport spans("s", "i", &clock, nullptr, Outputs(MakeOtlpOutput(collector.url())));
    for (int i = 0; i < 1000; ++i) spans.Record(SpanOf(spans));
  }
  size_t got = 0;
  for (const Json& body : collector.bodies()) {
    const size_t n = body["resourceSpans"][0]["scopeSpans"][0]["spans"].size();
    EXPECT_LE(n, 512u);
    got += n;
  }
  EXPECT_EQ(got, 1000u);
  EXPECT_EQ(collector.types().front(), "application/json");
}

TEST(SpanExportTest, RecordsDoNotWaitForACollectorThatIsAway) {
  const MonotonicClock clock;
  std::string nobody;
  {
    Collector gone(200);
    nobody = gone.url();
  }
  const absl::Time start = clock.Now();
  auto spans =
      std::make_unique<SpanExport>("s", "i", &clock, nullptr, Outputs(MakeOtlpOutput(nobody)));
  for (int i = 0; i < 40'000; ++i) spans->Record(SpanOf(*spans));
  EXPECT_GT(spans->lost(), 0u) << "a bounded queue";
  const uint64_t lost = spans->lost();
  EXPECT_LT(lost, 40'000u);
  spans.reset();
  EXPECT_LT(clock.Now() - start, absl::Seconds(20));
}

TEST(SpanExportTest, ARefusalIsALossAndNoRetry) {
  Collector collector(400);
  const MonotonicClock clock;
  auto spans = std::make_unique<SpanExport>("s", "i", &clock, nullptr,
                                            Outputs(MakeOtlpOutput(collector.url())));
  spans->Record(SpanOf(*spans));
  while (spans->lost() == 0) absl::SleepFor(absl::Milliseconds(10));
  EXPECT_EQ(collector.bodies().size(), 1u);
}

}  // namespace
}  // namespace switchyard
