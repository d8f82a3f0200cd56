#include "engine/wire_conversion.h"

#include <gtest/gtest.h>

#include <functional>
#include <limits>

#include "cluster/convert.h"

namespace switchyard {
namespace {

namespace pb = cluster::v1;

EngineRequest Request() {
  EngineRequest r;
  r.key = {"r", 3};
  r.prompt_ids = {1, 2, 3};
  r.generated_ids = {4};
  r.sampling = {.temperature = 0.5f,
                .top_k = 7,
                .top_p = 0.5f,
                .min_p = 0.25f,
                .presence_penalty = -1.5f,
                .frequency_penalty = 1.5f,
                .repetition_penalty = 1.25f,
                .logit_bias = {{2, -100.0f}, {9, 0.5f}},
                .seed = ~0ull,
                .sample = 3,
                .logprobs = 5};
  r.min_tokens = 6;
  r.cache_salt = "tenant";
  r.max_tokens = 9;
  r.stop_token_ids = {11};
  r.ignore_eos = true;
  r.priority = -2;
  r.prompt_logprobs = 1;
  return r;
}

TEST(WireConversionTest, RequestSurvives) {
  const EngineRequest r = Request();
  pb::Submit submit;
  ToProto(r, &submit);
  const auto back = RequestFromProto(submit);
  ASSERT_TRUE(back.ok()) << back.status();
  EXPECT_EQ(back->key, r.key);
  EXPECT_EQ(back->prompt_ids, r.prompt_ids);
  EXPECT_EQ(back->generated_ids, r.generated_ids);
  EXPECT_EQ(back->sampling, r.sampling);
  EXPECT_EQ(back->min_tokens, r.min_tokens);
  EXPECT_EQ(back->cache_salt, r.cache_salt);
  EXPECT_EQ(back->max_tokens, r.max_tokens);
  EXPECT_EQ(back->stop_token_ids, r.stop_token_ids);
  EXPECT_EQ(back->ignore_eos, r.ignore_eos);
  EXPECT_EQ(back->priority, r.priority);
  EXPECT_EQ(back->prompt_logprobs, r.prompt_logprobs);
}

TEST(WireConversionTest, RefusesWhatAPeerMayNotSay) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const std::pair<std::function<void(pb::Submit&)>, std::string> cases[] = {
      {[](auto& s) { s.mutable_id()->set_request(std::string(129, 'x')); },
       "length of the request's id is 129; allowed are 1 to 128"},
      {[](auto& s) { s.mutable_id()->set_attempt(0); }, "attempt is 0; attempts count from 1"},
      {[](auto& s) { s.clear_prompt_ids(); }, "prompt_ids is empty"},
      {[](auto& s) { s.set_max_tokens(1); },
       "generated_ids has 1 tokens; max_tokens 1 leaves none to generate"},
      {[&](auto& s) { s.mutable_sampling()->set_temperature(nan); },
       "temperature is nan; allowed are 0 to 100"},
      {[](auto& s) { s.mutable_sampling()->set_top_p(0); }, "top_p is 0; allowed is (0, 1]"},
      {[&](auto& s) { s.mutable_sampling()->set_top_p(nan); }, "top_p is nan; allowed is (0, 1]"},
      {[](auto& s) { s.mutable_sampling()->set_top_k(-1); },
       "top_k is -1; it must be at least 0 (off)"},
      {[](auto& s) { s.mutable_sampling()->set_logprobs(21); },
       "logprobs is 21; allowed are -1 to 20"},
      {[&](auto& s) { s.mutable_sampling()->set_min_p(nan); }, "min_p is nan; allowed are 0 to 1"},
      {[](auto& s) { s.mutable_sampling()->set_presence_penalty(-2.5f); },
       "presence_penalty is -2.5; allowed are -2 to 2"},
      {[](auto& s) { s.mutable_sampling()->set_repetition_penalty(0); },
       "repetition_penalty is 0; allowed is (0, 100]"},
      {[](auto& s) { s.mutable_sampling()->set_bias_values(0, 101); },
       "logit_bias of 2 is 101; allowed are -100 to 100"},
      {[](auto& s) { s.mutable_sampling()->set_bias_tokens(0, 9); },
       "logit_bias names token 9 twice"},
      {[](auto& s) {
         s.mutable_sampling()->mutable_bias_values()->Resize(1025, 1),
             s.mutable_sampling()->mutable_bias_tokens()->Resize(1025, 1);
       },
       "number of logit_bias is 1025; allowed are 0 to 1024"},
      {[](auto& s) { s.set_min_tokens(10); }, "min_tokens is 10; allowed are 0 to max_tokens, 9"},
      {[](auto& s) { s.set_prompt_logprobs(-2); }, "prompt_logprobs is -2; allowed are -1 to 20"},
      {[](auto& s) { s.mutable_stop_token_ids()->Resize(257, 1); },
       "number of stop_token_ids is 257; allowed are 0 to 256"},
  };
  for (const auto& [spoil, message] : cases) {
    pb::Submit submit;
    ToProto(Request(), &submit);
    spoil(submit);
    const absl::Status status = RequestFromProto(submit).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(status.message(), message);
  }
}

EngineOutput Output() {
  EngineOutput o;
  o.key = {"r", 3};
  o.index = 5;
  o.token = SampledToken{.token = 8, .logprob = -0.5f, .rank = 2, .top = {{9, -0.25f}, {8, -0.5f}}};
  o.prompt_logprobs = {{.token = 2, .logprob = -3.0f, .rank = 1, .top = {}}};
  o.finish = FinishReason::kStop;
  return o;
}

TEST(WireConversionTest, OutputIsWhole) {
  const EngineOutput o = Output();
  const pb::AttemptEvent e = ToEvent(o);
  EXPECT_EQ(FromProto(e.id()), o.key);
  EXPECT_EQ(e.index(), 5);
  const SampledToken token = FromProto(e.token());
  EXPECT_EQ(token.token, 8);
  EXPECT_EQ(token.logprob, -0.5f);
  EXPECT_EQ(token.rank, 2);
  EXPECT_EQ(token.top, o.token->top);
  EXPECT_EQ(e.prompt_logprobs_size(), 1);
  EXPECT_EQ(e.finish(), pb::FINISH_STOP);
}

TEST(WireConversionTest, ErrorSurvives) {
  EngineOutput o;
  o.key = {"r", 1};
  o.finish = FinishReason::kError;
  o.error = absl::ResourceExhaustedError("no room");
  const pb::AttemptEvent e = ToEvent(o);
  EXPECT_EQ(ErrorOf(e), o.error);
  EXPECT_FALSE(e.has_token());
}

}  // namespace
}  // namespace switchyard
