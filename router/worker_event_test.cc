#include "router/worker_event.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>

#include "cluster/convert.h"

namespace switchyard {
namespace {

namespace pb = cluster::v1;

pb::AttemptEvent Event() {
  pb::AttemptEvent e;
  ToProto(AttemptKey{"r", 3}, e.mutable_id());
  e.set_index(5);
  e.set_cached_tokens(2);
  ToProto(SampledToken{.token = 8, .logprob = -0.5f, .rank = 2, .top = {{9, -0.25f}, {8, -0.5f}}},
          e.mutable_token());
  ToProto(SampledToken{.token = 2, .logprob = -INFINITY, .rank = 1, .top = {}},
          e.add_prompt_logprobs());
  e.set_finish(pb::FINISH_STOP);
  return e;
}

TEST(WorkerEventTest, WholeEventSurvives) {
  const WorkerEvent e = EventFromProto(Event(), 10, 20);
  EXPECT_EQ(e.attempt, 3);
  EXPECT_EQ(e.index, 5);
  EXPECT_EQ(e.cached_tokens, 2);
  ASSERT_TRUE(e.token.has_value());
  EXPECT_EQ(e.token->token, 8);
  EXPECT_EQ(e.token->top.size(), 2u);
  EXPECT_EQ(e.prompt_logprobs.size(), 1u);
  EXPECT_EQ(e.finish, WorkerEvent::Finish::kStop);
  EXPECT_EQ(EventFromProto(Event(), 0, 20).finish, WorkerEvent::Finish::kStop);
  EXPECT_TRUE(absl::IsDataLoss(EventFromProto(Event(), 10, 1).error));
}

TEST(WorkerEventTest, ErrorSurvivesWithItsAdvice) {
  absl::Status full = absl::ResourceExhaustedError("no room");
  SetRetryAfter(absl::Seconds(2), &full);
  const WorkerEvent e = EventFromProto(ErrorEvent({"r", 1}, full), 10, 20);
  EXPECT_EQ(e.finish, WorkerEvent::Finish::kError);
  EXPECT_EQ(e.error, full);
  EXPECT_EQ(e.retry_after, absl::Seconds(2));
  EXPECT_FALSE(e.token.has_value());
}

TEST(WorkerEventTest, WhatNoWorkerSaysIsDataLoss) {
  const std::function<void(pb::AttemptEvent&)> cases[] = {
      [](auto& e) { e.set_index(-1); },
      [](auto& e) { e.set_cached_tokens(-1); },
      [](auto& e) { e.mutable_token()->set_token(-1); },
      [](auto& e) { e.mutable_token()->set_token(10); },
      [](auto& e) { e.mutable_token()->set_rank(-1); },
      [](auto& e) { e.mutable_token()->set_logprob(INFINITY); },
      [](auto& e) { e.mutable_token()->add_top_tokens(1); },
      [](auto& e) { e.mutable_token()->set_top_tokens(0, 10); },
      [](auto& e) { e.mutable_token()->set_top_logprobs(0, NAN); },
      [](auto& e) { e.mutable_prompt_logprobs(0)->set_logprob(NAN); },
      [](auto& e) { e.set_finish(static_cast<pb::Finish>(77)); },
  };
  for (const auto& spoil : cases) {
    pb::AttemptEvent event = Event();
    spoil(event);
    const WorkerEvent e = EventFromProto(event, 10, 20);
    EXPECT_EQ(e.finish, WorkerEvent::Finish::kError) << event.DebugString();
    EXPECT_TRUE(absl::IsDataLoss(e.error)) << e.error;
    EXPECT_TRUE(!e.token.has_value() && e.prompt_logprobs.empty());
  }
}

}  // namespace
}  // namespace switchyard
