#include "router/request_trace.h"

#include <gtest/gtest.h>

#include <map>

namespace switchyard {
namespace {

class Spans final : public SpanSink {
 public:
  TraceContext Begin(const TraceContext& parent) override {
    TraceContext context = parent.valid() ? parent : TraceContext{1, 2, 0, true};
    context.span = ++last_;
    return context;
  }
  void Record(Span span) override { of[span.name] = std::move(span); }

  std::map<std::string, Span> of;  // by name

 private:
  uint64_t last_ = 100;
};

absl::Time At(int ms) { return absl::UnixEpoch() + absl::Milliseconds(ms); }

TEST(RequestTraceTest, StagesLieWithinTheirAttempt) {
  Spans spans;
  RequestTrace trace(&spans, TraceContext{7, 8, 9, true}, At(0));
  EXPECT_EQ(trace.trace_id(), "00000000000000070000000000000008");
  trace.StartAttempt(1, "p:1", "d:1", At(5));
  trace.Token(At(20));
  trace.HandedOff(1000, "shm", At(23));
  trace.Token(At(30));
  trace.End({{"request", "r"}}, absl::OkStatus(), At(60));
  trace.End({}, absl::OkStatus(), At(70));  // once

  ASSERT_EQ(spans.of.size(), 6u);
  for (const auto& [name, span] : spans.of) {
    EXPECT_EQ(span.context.trace_high, 7u) << name;
    EXPECT_EQ(span.error, "") << name;
  }
  const auto expect = [&](const char* name, uint64_t parent, int start, int end) {
    const Span& span = spans.of[name];
    EXPECT_EQ(span.parent, parent) << name;
    EXPECT_EQ(span.start, At(start)) << name;
    EXPECT_EQ(span.end, At(end)) << name;
  };
  const uint64_t request = spans.of["request"].context.span;
  const uint64_t attempt = spans.of["attempt 1"].context.span;
  expect("request", 9, 0, 60);
  expect("queue", request, 0, 5);
  expect("attempt 1", request, 5, 60);
  expect("prefill", attempt, 5, 20);
  expect("transfer", attempt, 20, 23);
  expect("decode", attempt, 23, 60);
  EXPECT_EQ(spans.of["decode"].attributes[0].second, "d:1");
}

TEST(RequestTraceTest, AFailedAttemptIsSeenAndTheNextOneToo) {
  Spans spans;
  RequestTrace trace(&spans, std::nullopt, At(0));
  trace.StartAttempt(1, "", "d:1", At(1));
  trace.EndAttempt(absl::UnavailableError("lost"), At(4));
  trace.StartAttempt(2, "", "d:2", At(6));
  trace.Token(At(8));
  trace.End({}, absl::OkStatus(), At(10));
  EXPECT_EQ(spans.of["attempt 1"].error, "UNAVAILABLE: lost");
  EXPECT_EQ(spans.of["attempt 2"].error, "");
  EXPECT_EQ(spans.of["queue"].end, At(1)) << "of the first attempt only";
  EXPECT_EQ(spans.of["request"].parent, 0u) << "a trace of its own";
  EXPECT_EQ(spans.of.count("transfer"), 0u);
}

TEST(RequestTraceTest, WhatIsNotSampledIsNotRecorded) {
  Spans spans;
  for (SpanSink* sink : {static_cast<SpanSink*>(&spans), static_cast<SpanSink*>(nullptr)}) {
    RequestTrace trace(sink, TraceContext{7, 8, 9, false}, At(0));
    trace.StartAttempt(1, "p", "d", At(1));
    trace.Token(At(2));
    trace.HandedOff(1, "tcp", At(3));
    trace.End({}, absl::OkStatus(), At(4));
    EXPECT_EQ(trace.trace_id(), "");
  }
  EXPECT_TRUE(spans.of.empty());
}

}  // namespace
}  // namespace switchyard
