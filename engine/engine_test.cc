#include "engine/engine.h"

#include <gtest/gtest.h>

#include <cstring>
#include <map>
#include <random>
#include <set>

#include "engine/engine_testing.h"

namespace switchyard {
namespace {

const std::map<std::string, Answer>& Alone() {
  static const auto answers = RunAlone();
  return answers;
}

TEST(EngineBitsTest, RequestsDiffer) {
  std::set<std::string> distinct;
  for (const auto& [id, bits] : BitsOf(Alone())) distinct.insert(bits);
  EXPECT_EQ(distinct.size(), 24u);
  for (const EngineRequest& r : MixedRequests()) {
    const Answer& a = Alone().at(r.key.request);
    EXPECT_NE(a.finish, FinishReason::kNone);
    EXPECT_EQ(a.prompt_logprobs.size(), r.prompt_logprobs < 0 ? 0 : r.prompt_ids.size() - 1);
    if (a.finish == FinishReason::kLength) {
      EXPECT_EQ(a.tokens.size(), static_cast<size_t>(r.max_tokens));
    }
  }
}

TEST(EngineBitsTest, AllAtOnceEqualsOneAtATime) {
  EXPECT_EQ(BitsOf(RunAll({.max_model_len = 128})), BitsOf(Alone()));
}

TEST(EngineBitsTest, ChunksDoNotMatter) {
  EXPECT_EQ(
      BitsOf(RunAll({.max_model_len = 128, .max_num_batched_tokens = 16, .prefill_chunk = 16})),
      BitsOf(Alone()));
  EXPECT_EQ(BitsOf(RunAll({.max_model_len = 128,
                           .max_num_batched_tokens = 37,
                           .prefill_chunk = 5,
                           .block_size = 8})),
            BitsOf(Alone()));
}

TEST(EngineBitsTest, PreemptionDoesNotMatter) {
  EngineStats stats;
  EXPECT_EQ(BitsOf(RunAll({.max_model_len = 128, .block_size = 2, .kv_blocks = 34}, &stats)),
            BitsOf(Alone()));
  EXPECT_GT(stats.preemptions, 0u);
}

// The same requests again and again: their prompts, and what was generated, are there by now. With
// few blocks they come and go.
TEST(EngineBitsTest, PrefixHitsDoNotMatter) {
  for (const bool caching : {true, false}) {
    for (const int kv_blocks : {0, 90}) {
      auto engine = MakeEngine({.max_model_len = 128,
                                .prefill_chunk = 16,
                                .block_size = 4,
                                .kv_blocks = kv_blocks,
                                .prefix_caching = caching});
      for (int pass = 0; pass < 3; ++pass) {
        std::map<std::string, Answer> answers;
        for (EngineRequest& r : MixedRequests()) {
          // Turns of a conversation: half of the answer is part of the prompt that comes next.
          const std::vector<SampledToken>& whole = Alone().at(r.key.request).tokens;
          for (size_t i = 0; i < whole.size() / 2 && pass == 1; ++i) {
            r.generated_ids.push_back(whole[i].token);
            answers[r.key.request].tokens.push_back(whole[i]);
          }
          ASSERT_TRUE(engine->Add(std::move(r)).ok());
        }
        Drain(*engine, &answers);
        ExpectAtRest(*engine);
        EXPECT_EQ(BitsOf(answers), BitsOf(Alone())) << caching << kv_blocks << pass;
      }
      // The small pool forgets each request before it comes again.
      if (kv_blocks == 0) {
        EXPECT_EQ(engine->stats().prefix_hits > 50, caching);
      }
      EXPECT_EQ(engine->stats().blocks.cached > 0, caching);
    }
  }
}

TEST(EngineTest, TheFirstTokenTellsWhatWasCached) {
  auto engine = MakeEngine({.max_model_len = 128});
  std::mt19937 rng(3);
  const std::vector<TokenId> prompt = RandomPrompt(rng, 40);
  uint64_t computed = 0;
  for (const int want : {0, 32}) {
    ASSERT_TRUE(engine->Add(MakeRequest("a", prompt, 2)).ok());
    int cached = -1;
    while (engine->HasWork()) {
      const auto outputs = engine->Step().value();
      for (const EngineOutput& o : outputs) {
        if (o.index == 0) cached = o.cached_tokens;
      }
    }
    EXPECT_EQ(cached, want);
    computed += 40 - want;
    EXPECT_EQ(engine->stats().prompt_tokens, computed);
  }
}

TEST(EngineBitsTest, AStepThatFailedMayBeRunAgain) {
  FaultyModel model(TestModel());
  model.fail_every = 3;
  EXPECT_EQ(BitsOf(RunAll({.max_model_len = 128}, nullptr, model)), BitsOf(Alone()));
}

// A replay begins with what was already told, at any place.
TEST(EngineTest, AStepThatFailedSharesNothing) {
  FaultyModel model(TestModel());
  const auto engine = MakeEngine({.max_model_len = 64, .kv_blocks = 8}, model);
  std::mt19937 rng(5);
  const std::vector<TokenId> prompt = RandomPrompt(rng, 33);  // two full blocks
  const auto shared = [&] {
    const auto reservation = engine->Reserve(33, prompt, 33, {}, 0);
    EXPECT_TRUE(reservation.ok()) << reservation.status();
    engine->ReleaseReservation(*reservation, false);
    return reservation->shared();
  };
  ASSERT_TRUE(engine->Add(MakeRequest("a", prompt, 3)).ok());
  model.fail_every = 1;
  for (int i = 0; i < 3; ++i) {
    EXPECT_TRUE(absl::IsUnavailable(engine->Step().status()));
    EXPECT_EQ(shared(), 0u);
  }
  model.fail_every = 0;
  const auto outputs = engine->Step();
  ASSERT_TRUE(outputs.ok()) << outputs.status();
  ASSERT_EQ(outputs->size(), 1u) << "one token, however often its step was tried";
  EXPECT_EQ((*outputs)[0].index, 0);
  EXPECT_EQ(shared(), 2u);
  EXPECT_EQ(engine->stats().prefix_queries, 33u);
}

TEST(EngineBitsTest, ReplayContinuesWithTheSameBits) {
  auto engine = MakeEngine({.max_model_len = 128});
  std::map<std::string, Answer> want;
  for (EngineRequest& r : MixedRequests()) {
    const Answer& whole = Alone().at(r.key.request);
    const size_t told = whole.tokens.size() / 2;
    for (size_t i = 0; i < told; ++i) r.generated_ids.push_back(whole.tokens[i].token);
    Answer rest = whole;
    rest.tokens.erase(rest.tokens.begin(), rest.tokens.begin() + static_cast<ptrdiff_t>(told));
    want[r.key.request] = rest;
    ASSERT_TRUE(engine->Add(std::move(r)).ok());
  }
  std::map<std::string, Answer> got;
  while (engine->HasWork()) {
    const auto outputs = engine->Step().value();
    for (const EngineOutput& o : outputs) {
      Answer& a = got[o.key.request];
      EXPECT_EQ(o.index,
                static_cast<int>(a.tokens.size() + Alone().at(o.key.request).tokens.size() / 2));
      a.tokens.push_back(*o.token);
      if (!o.prompt_logprobs.empty()) a.prompt_logprobs = o.prompt_logprobs;
      a.finish = o.finish;
    }
  }
  EXPECT_EQ(BitsOf(got), BitsOf(want));
}

TEST(EngineTest, PenaltiesCountPromptAndGeneratedTokens) {
  auto engine = MakeEngine({.max_model_len = 128});
  // With this bias only these two tokens are ever drawn; the penalty makes them take turns.
  EngineRequest r = MakeRequest("turns", {5, 6, 7}, 8);
  r.sampling.logit_bias = {{50, 100.0f}, {60, 100.0f}};
  r.sampling.frequency_penalty = 2.0f;
  r.sampling.presence_penalty = 2.0f;
  EngineRequest p = r;
  p.key.request = "prompt";
  p.prompt_ids = {50, 50, 50};
  p.sampling.frequency_penalty = p.sampling.presence_penalty = 0;
  p.sampling.repetition_penalty = 50;
  p.max_tokens = 1;
  ASSERT_TRUE(engine->Add(std::move(r)).ok());
  ASSERT_TRUE(engine->Add(std::move(p)).ok());
  std::map<std::string, Answer> answers;
  Drain(*engine, &answers);
  std::map<TokenId, int> counts;
  for (const SampledToken& t : answers["turns"].tokens) ++counts[t.token];
  EXPECT_EQ(counts.size(), 2u);
  EXPECT_GE(counts[50], 2);
  EXPECT_GE(counts[60], 2);
  EXPECT_EQ(answers["prompt"].tokens[0].token, 60);  // never seen before
}

TEST(EngineTest, NothingStopsBeforeMinTokens) {
  auto engine = MakeEngine({.max_model_len = 128});
  for (const int min_tokens : {0, 3}) {
    EngineRequest r = MakeRequest(std::to_string(min_tokens), {5, 6, 7}, 10);
    r.ignore_eos = false;
    r.min_tokens = min_tokens;
    r.stop_token_ids = {50};
    const TokenId eos = TestModel().config().eos_token_ids[0];
    r.sampling.logit_bias = {{50, 100.0f}, {eos, 100.0f}};
    ASSERT_TRUE(engine->Add(std::move(r)).ok());
  }
  std::map<std::string, Answer> answers;
  Drain(*engine, &answers);
  EXPECT_EQ(answers["0"].tokens.size(), 1u);
  EXPECT_EQ(answers["3"].tokens.size(), 4u);
  EXPECT_EQ(answers["3"].finish, FinishReason::kStop);
}

// One engine computes prompts, another decodes; the KV goes across as the progress reports say.
TEST(EngineHandoffTest, PrefillPlusDecodeEqualsOneEngine) {
  auto prefill = MakeEngine({.max_model_len = 128, .prefill_chunk = 16, .kv_blocks = 40});
  auto decode = MakeEngine({.max_model_len = 128, .kv_blocks = 24});
  const KvLayout layout = prefill->kv().layout();
  // MLA: the rows of a block lie one after the other.
  ASSERT_EQ(layout.kind, KvLayout::Kind::kMla);
  const size_t row_bytes = layout.BlockBytes() / static_cast<size_t>(layout.block_tokens);
  std::map<AttemptKey, KvReservation> reservations;
  std::map<std::string, std::vector<int>> reported;  // rows by request and layer
  prefill->SetKvProgress([&](const KvProgress& p) {
    auto [it, first] = reservations.try_emplace(p.key);
    if (first) it->second = decode->Reserve(p.prompt_tokens).value();
    auto& rows = reported[p.key.request];
    rows.resize(static_cast<size_t>(layout.layers));
    ASSERT_EQ(rows[static_cast<size_t>(p.layer)], p.first_token) << "a gap or a repeat";
    rows[static_cast<size_t>(p.layer)] += p.tokens;
    for (int t = p.first_token; t < p.first_token + p.tokens; ++t) {
      const auto block = static_cast<size_t>(t / layout.block_tokens);
      const size_t offset = static_cast<size_t>(t % layout.block_tokens) * row_bytes;
      std::memcpy(decode->kv().Block(p.layer, it->second.blocks[block].value()) + offset,
                  prefill->kv().Block(p.layer, p.blocks[block].value()) + offset, row_bytes);
    }
  });
  const auto requests = MixedRequests();
  for (const bool again : {false, true}) {  // then the prefill rank has their prompts
    std::map<std::string, Answer> answers;
    reservations.clear();
    reported.clear();
    for (size_t group = 0; group < requests.size(); group += 4) {
      for (size_t i = group; i < group + 4; ++i) {
        EngineRequest r = requests[i];
        r.prefill_only = true;
        ASSERT_TRUE(prefill->Add(std::move(r)).ok());
      }
      std::map<std::string, Answer> first;
      Drain(*prefill, &first);
      EXPECT_EQ(prefill->stats().held, 4);
      for (size_t i = group; i < group + 4; ++i) {
        const EngineRequest& r = requests[i];
        const Answer& a = answers[r.key.request] = first.at(r.key.request);
        ASSERT_EQ(a.tokens.size(), 1u);
        EXPECT_EQ(reported[r.key.request].back(), static_cast<int>(r.prompt_ids.size()));
        prefill->Release(r.key);
        const KvReservation& reservation = reservations.at(r.key);
        const absl::Status adopted = decode->Adopt(r, reservation, a.tokens[0].token);
        EXPECT_EQ(adopted.ok(), a.finish == FinishReason::kNone) << adopted;
        if (!adopted.ok()) decode->ReleaseReservation(reservation, false);
      }
      Drain(*decode, &answers);
    }
    EXPECT_EQ(BitsOf(answers), BitsOf(Alone()));
    EXPECT_EQ(prefill->stats().prefix_hits > 0, again);
  }
  ExpectAtRest(*prefill);
  ExpectAtRest(*decode);
}

TEST(EngineTest, StopTokensEndARequest) {
  auto engine = MakeEngine({.max_model_len = 128});
  const EngineRequest base = MixedRequests()[4];
  const std::vector<SampledToken>& want = Alone().at("4").tokens;
  ASSERT_GE(want.size(), 3u);
  EngineRequest r = base;
  r.stop_token_ids = {want[2].token};
  ASSERT_TRUE(engine->Add(r).ok());
  std::map<std::string, Answer> answers;
  Drain(*engine, &answers);
  EXPECT_EQ(answers["4"].finish, FinishReason::kStop);
  size_t first = 0;
  while (want[first].token != want[2].token) ++first;
  EXPECT_EQ(answers["4"].tokens.size(), first + 1);
}

TEST(EngineTest, ContextEndsARequest) {
  auto engine = MakeEngine({.max_model_len = 12});
  std::mt19937 rng(1);
  ASSERT_TRUE(engine->Add(MakeRequest("a", RandomPrompt(rng, 9), 1000)).ok());
  std::map<std::string, Answer> answers;
  Drain(*engine, &answers);
  EXPECT_EQ(answers["a"].tokens.size(), 3u);
  EXPECT_EQ(answers["a"].finish, FinishReason::kLength);
}

TEST(EngineTest, AbortFreesEverything) {
  auto engine = MakeEngine({.max_model_len = 128, .max_num_seqs = 5});
  const auto requests = MixedRequests();
  for (size_t i = 0; i < requests.size(); ++i) {
    EngineRequest r = requests[i];
    r.prefill_only = i % 4 == 0;
    ASSERT_TRUE(engine->Add(std::move(r)).ok());
  }
  const auto reservation = engine->Reserve(20);
  for (int i = 0; i < 5; ++i) ASSERT_TRUE(engine->Step().ok());
  EXPECT_GT(engine->stats().blocks.owned, 0);
  for (const EngineRequest& r : requests) engine->Abort(r.key);
  engine->Abort({"unknown", 1});
  if (reservation.ok()) {
    engine->ReleaseReservation(*reservation, true);
    EXPECT_EQ(engine->stats().blocks.quarantined, 2);
    engine->Unquarantine(*reservation);
  }
  ExpectAtRest(*engine);
}

TEST(EngineTest, FirstTokenMayFinishAPrefill) {
  auto engine = MakeEngine({.max_model_len = 128});
  EngineRequest r = MakeRequest("a", {5, 6, 7}, 1);
  r.prefill_only = true;
  ASSERT_TRUE(engine->Add(r).ok());
  std::map<std::string, Answer> answers;
  Drain(*engine, &answers);
  EXPECT_EQ(answers["a"].finish, FinishReason::kLength);
  EXPECT_EQ(engine->stats().held, 1);
  engine->Release(r.key);
  engine->Release(r.key);
  ExpectAtRest(*engine);
}

TEST(EngineTest, BadLogitsFailOneRequest) {
  FaultyModel model(TestModel());
  model.poison_logits = true;
  auto engine = MakeEngine({.max_model_len = 128}, model);
  ASSERT_TRUE(engine->Add(MakeRequest("bad", {5, 6, 7}, 4)).ok());
  ASSERT_TRUE(engine->Add(MakeRequest("good", {5, 6, 7}, 4)).ok());
  const auto outputs = engine->Step();
  ASSERT_TRUE(outputs.ok());
  ASSERT_EQ(outputs->size(), 2u);
  EXPECT_EQ((*outputs)[0].finish, FinishReason::kError);
  EXPECT_EQ((*outputs)[0].error.message(), "logits before position 3 are not finite");
  EXPECT_FALSE((*outputs)[0].token.has_value());
  EXPECT_EQ((*outputs)[1].finish, FinishReason::kNone);
  EXPECT_EQ(engine->stats().running, 1);
}

TEST(EngineTest, RefusalsNameTheValue) {
  auto engine = MakeEngine({.max_model_len = 64, .kv_blocks = 3});
  const auto refusal = [&](EngineRequest r) { return std::string(engine->Add(r).message()); };
  EXPECT_EQ(refusal(MakeRequest("a", {5, 4096}, 4)),
            "prompt_ids[1] is 4096; allowed are 0 to 4095");
  EXPECT_EQ(refusal(MakeRequest("a", std::vector<TokenId>(64, 5), 4)),
            "prompt_ids and generated_ids have 64 tokens; max_model_len 64 leaves at most 63");
  EXPECT_EQ(refusal(MakeRequest("a", std::vector<TokenId>(40, 5), 40)),
            "prompt of 40 tokens with max_tokens 40 may need 4 KV blocks of 16 tokens; kv_blocks "
            "is 3");
  EXPECT_EQ(engine->Reserve(64).status().message(),
            "tokens of a reservation is 64; allowed are 1 to 63");
  EXPECT_EQ(engine->Reserve(49).status().code(), absl::StatusCode::kResourceExhausted);
  ExpectAtRest(*engine);

  const auto created = [](EngineOptions o) {
    return std::string(Engine::Create(&TestModel(), o).status().message());
  };
  EXPECT_EQ(created({.max_model_len = 4096}), "max_model_len is 4096; allowed are 2 to 2048");
  EXPECT_EQ(created({.max_num_batched_tokens = 0}),
            "max_num_batched_tokens is 0; allowed are 1 to 2048");
  EXPECT_EQ(created({.block_size = -1}), "block_size is -1; allowed are 1 to 1024");
}

TEST(EngineTest, AdoptRefusalLeavesTheReservation) {
  auto engine = MakeEngine({.max_model_len = 64});
  const KvReservation one = engine->Reserve(3).value();
  EXPECT_EQ(one.generations.size(), 1u);
  EngineRequest r = MakeRequest("a", std::vector<TokenId>(17, 5), 4);
  EXPECT_FALSE(engine->Adopt(r, one, 5).ok());  // 17 tokens need two blocks
  r.prompt_ids.resize(3);
  EXPECT_FALSE(engine->Adopt(r, one, -1).ok());
  r.stop_token_ids = {5};
  EXPECT_FALSE(engine->Adopt(r, one, 5).ok());  // already over
  EXPECT_EQ(engine->stats().blocks.leased, 1);
  engine->ReleaseReservation(one, false);
  ExpectAtRest(*engine);
}

}  // namespace
}  // namespace switchyard
