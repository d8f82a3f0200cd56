// engine/engine_testing.h: what the engine's tests share: requests of every kind, and their answers
// to the last bit.
#pragma once

#include <gtest/gtest.h>

#include <bit>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "engine/test_model.h"

namespace switchyard {

// All that a request was answered.
struct Answer {
  std::vector<SampledToken> tokens, prompt_logprobs;
  FinishReason finish = FinishReason::kNone;
};

inline std::string Bits(float f) { return std::to_string(std::bit_cast<uint32_t>(f)); }
inline std::string Bits(const std::vector<SampledToken>& tokens) {
  std::string out;
  for (const SampledToken& t : tokens) {
    out += std::to_string(t.token) + ":" + Bits(t.logprob) + ":" + std::to_string(t.rank);
    for (const TokenLogprob& p : t.top)
      out += "," + std::to_string(p.token) + "=" + Bits(p.logprob);
    out += " ";
  }
  return out;
}
// A whole run, to be compared to the last bit.
using Answers = std::map<std::string, std::string>;
inline Answers BitsOf(const std::map<std::string, Answer>& answers) {
  Answers out;
  for (const auto& [id, a] : answers) {
    out[id] = Bits(a.tokens) + "| " + Bits(a.prompt_logprobs) + "| " +
              std::to_string(static_cast<int>(a.finish));
  }
  return out;
}

inline std::unique_ptr<Engine> MakeEngine(const EngineOptions& options,
                                          Model& model = TestModel()) {
  auto engine = Engine::Create(&model, options);
  SY_CHECK_MSG(engine.ok(), std::string(engine.status().message()));
  return *std::move(engine);
}

inline EngineRequest MakeRequest(const std::string& id, std::vector<TokenId> prompt,
                                 int max_tokens) {
  EngineRequest r;
  r.key = {id, 1};
  r.prompt_ids = std::move(prompt);
  r.max_tokens = max_tokens;
  r.ignore_eos = true;
  r.sampling.temperature = 0;
  r.sampling.logprobs = 2;
  return r;
}

inline std::vector<TokenId> RandomPrompt(std::mt19937& rng, int length) {
  std::vector<TokenId> ids;
  for (int i = 0; i < length; ++i) ids.push_back(static_cast<TokenId>(4 + rng() % 4000));
  return ids;
}

// Lengths around the block size, all kinds of sampling, some with prompt log-probabilities.
inline std::vector<EngineRequest> MixedRequests() {
  std::mt19937 rng(7);
  std::vector<EngineRequest> requests;
  for (int i = 0; i < 24; ++i) {
    const int edges[] = {1, 2, 15, 16, 17, 33};
    const int length = i < 6 ? edges[i] : 1 + static_cast<int>(rng() % 40);
    EngineRequest r =
        MakeRequest(std::to_string(i), RandomPrompt(rng, length), 1 + static_cast<int>(rng() % 14));
    r.ignore_eos = i % 3 != 0;
    r.priority = static_cast<int>(rng() % 2);
    if (i % 2) {
      r.sampling.temperature = 0.7f + 0.1f * static_cast<float>(i % 5);
      r.sampling.top_k = i % 4 == 1 ? 20 : 0;
      r.sampling.top_p = i % 8 < 4 ? 0.9f : 1.0f;
      r.sampling.seed = rng();
    }
    if (i % 5 == 0) r.prompt_logprobs = 1;
    if (i % 7 == 3) {
      r.sampling.presence_penalty = 0.5f;
      r.sampling.frequency_penalty = 0.75f;
      r.sampling.repetition_penalty = 1.25f;
      r.sampling.logit_bias = {{static_cast<TokenId>(20 + i), 4.0f}, {300, -100.0f}};
      r.sampling.min_p = 0.02f;
      r.sampling.sample = static_cast<uint32_t>(i);
    }
    if (i % 9 == 5) r.min_tokens = r.max_tokens / 2;
    requests.push_back(std::move(r));
  }
  return requests;
}

// Steps until nothing is left; `answers` gathers by request.
inline void Drain(Engine& engine, std::map<std::string, Answer>* answers) {
  for (int step = 0; engine.HasWork(); ++step) {
    ASSERT_LT(step, 20000) << "livelock";
    auto outputs = engine.Step();
    if (absl::IsUnavailable(outputs.status())) continue;  // run it again
    ASSERT_TRUE(outputs.ok()) << outputs.status();
    for (EngineOutput& o : *outputs) {
      Answer& a = (*answers)[o.key.request];
      ASSERT_TRUE(o.token.has_value()) << o.error;
      ASSERT_EQ(a.finish, FinishReason::kNone) << "a token after the end";
      ASSERT_EQ(o.index, static_cast<int>(a.tokens.size()));
      a.tokens.push_back(*o.token);
      if (!o.prompt_logprobs.empty()) a.prompt_logprobs = o.prompt_logprobs;
      a.finish = o.finish;
    }
  }
}

inline void ExpectAtRest(const Engine& engine) {
  const EngineStats s = engine.stats();
  EXPECT_EQ(s.running + s.waiting + s.held, 0);
  EXPECT_EQ(s.blocks.available(), s.blocks.total);
  EXPECT_FALSE(engine.HasWork());
}

inline std::map<std::string, Answer> RunAll(const EngineOptions& options,
                                            EngineStats* stats = nullptr,
                                            Model& model = TestModel()) {
  auto engine = MakeEngine(options, model);
  std::map<std::string, Answer> answers;
  for (EngineRequest& r : MixedRequests()) {
    const absl::Status added = engine->Add(std::move(r));
    SY_CHECK_MSG(added.ok(), std::string(added.message()));
  }
  Drain(*engine, &answers);
  ExpectAtRest(*engine);
  if (stats != nullptr) *stats = engine->stats();
  return answers;
}

// One request after the other, nothing else in the engine: what every layout must equal.
inline std::map<std::string, Answer> RunAlone(Model& model = TestModel()) {
  std::map<std::string, Answer> a;
  auto engine = MakeEngine({.max_model_len = 128, .max_num_seqs = 1}, model);
  for (EngineRequest& r : MixedRequests()) {
    SY_CHECK(engine->Add(std::move(r)).ok());
    Drain(*engine, &a);
  }
  return a;
}

}  // namespace switchyard
