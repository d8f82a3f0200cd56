#include "common/telemetry/trace.h"

#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>

namespace switchyard {
namespace {

constexpr char kHeader[] = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

TEST(TraceTest, ReadsTheHeader) {
  const auto context = ParseTraceparent(kHeader);
  ASSERT_TRUE(context.has_value());
  EXPECT_EQ(TraceId(*context), "0af7651916cd43dd8448eb211c80319c");
  EXPECT_EQ(context->span, 0xb7ad6b7169203331u);
  EXPECT_TRUE(context->sampled);
  EXPECT_FALSE(
      ParseTraceparent("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00")->sampled);
  EXPECT_TRUE(ParseTraceparent("01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-later"));
}

TEST(TraceTest, WhatIsNoHeaderIsNone) {
  const std::string good = kHeader;
  EXPECT_FALSE(ParseTraceparent(""));
  for (size_t i = 0; i < good.size(); ++i) {
    EXPECT_FALSE(ParseTraceparent(good.substr(0, i))) << i;
    std::string bad = good;
    bad[i] = 'G';
    EXPECT_FALSE(ParseTraceparent(bad)) << i;
  }
  EXPECT_FALSE(ParseTraceparent(good + "-more")) << "version 0 has no more";
  EXPECT_FALSE(ParseTraceparent("ff" + good.substr(2)));
  EXPECT_FALSE(ParseTraceparent("00-00000000000000000000000000000000-b7ad6b7169203331-01"));
  EXPECT_FALSE(ParseTraceparent("00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01"));
}

TEST(TraceTest, WritesWhatACollectorReads) {
  const std::string path = testing::TempDir() + "/spans.jsonl";
  const MonotonicClock clock;
  const TraceContext parent = *ParseTraceparent(kHeader);
  {
    auto file = SpanFile::Open(path, "router", &clock);
    ASSERT_TRUE(file.ok()) << file.status();
    const TraceContext own = (*file)->Begin(parent);
    EXPECT_EQ(TraceId(own), TraceId(parent));
    EXPECT_NE(own.span, parent.span);
    const absl::Time end = clock.Now();
    (*file)->Record({own,
                     parent.span,
                     "request",
                     end - absl::Seconds(2),
                     end,
                     {{"request", "r\n\xff"}},
                     "lost"});
    TraceContext unsampled = (*file)->Begin(parent);
    unsampled.sampled = false;
    (*file)->Record({unsampled, 0, "unseen", end, end, {}, ""});
    EXPECT_TRUE((*file)->Begin({}).valid()) << "a trace of its own";
    EXPECT_EQ((*file)->lost(), 0u);
  }
  std::ifstream in(path);
  std::string line, more;
  ASSERT_TRUE(std::getline(in, line));
  EXPECT_FALSE(std::getline(in, more));
  const auto json = nlohmann::json::parse(line)["resourceSpans"][0];
  EXPECT_EQ(json["resource"]["attributes"][0]["value"]["stringValue"], "router");
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

TEST(TraceTest, AFileThatCannotBeIsAnError) {
  const MonotonicClock clock;
  EXPECT_FALSE(SpanFile::Open("/nowhere/spans", "router", &clock).ok());
}

}  // namespace
}  // namespace switchyard
