// An engine whose prompts are computed in another form than generated tokens: a token's form is its
// request's, whatever happens to the request.
#include <gtest/gtest.h>

#include "engine/engine_testing.h"

namespace switchyard {
namespace {

const Answers& Wanted() {
  static const Answers answers = BitsOf(RunAlone(ExpandingModel()));
  return answers;
}

Answers Expanding(const EngineOptions& options, EngineStats* stats = nullptr) {
  return BitsOf(RunAll(options, stats, ExpandingModel()));
}

TEST(MlaFormsTest, TheFormShows) { EXPECT_NE(Wanted(), BitsOf(RunAlone())); }

TEST(MlaFormsTest, BatchesAndChunksDoNotMatter) {
  EXPECT_EQ(Expanding({.max_model_len = 128}), Wanted());
  EXPECT_EQ(Expanding({.max_model_len = 128,
                       .max_num_batched_tokens = 37,
                       .prefill_chunk = 5,
                       .block_size = 8}),
            Wanted());
}

TEST(MlaFormsTest, PreemptionDoesNotMatter) {
  EngineStats stats;
  EXPECT_EQ(Expanding({.max_model_len = 128, .block_size = 2, .kv_blocks = 34}, &stats), Wanted());
  EXPECT_GT(stats.preemptions, 0u);
}

// A replay finds prompts and what followed them; half of the answer comes with the request.
TEST(MlaFormsTest, ReplaysAndPrefixHitsDoNotMatter) {
  const auto whole = RunAlone(ExpandingModel());
  auto engine =
      MakeEngine({.max_model_len = 128, .prefill_chunk = 16, .block_size = 4}, ExpandingModel());
  for (int pass = 0; pass < 3; ++pass) {
    std::map<std::string, Answer> answers;
    for (EngineRequest& r : MixedRequests()) {
      const std::vector<SampledToken>& told = whole.at(r.key.request).tokens;
      for (size_t i = 0; i < told.size() / 2 && pass != 1; ++i) {
        r.generated_ids.push_back(told[i].token);
        answers[r.key.request].tokens.push_back(told[i]);
      }
      ASSERT_TRUE(engine->Add(std::move(r)).ok());
    }
    Drain(*engine, &answers);
    ExpectAtRest(*engine);
    EXPECT_EQ(BitsOf(answers), Wanted()) << pass;
  }
  EXPECT_GT(engine->stats().prefix_hits, 50u);
}

// A prompt that holds another's answer: those tokens were computed absorbed, and are wanted
// expanded. What was found in the cache must not show in its answer.
TEST(MlaFormsTest, AnAnswerIsNoPrompt) {
  constexpr int kPrompt = 18, kAnswer = 20;
  std::mt19937 rng(31);
  const EngineOptions options = {.max_model_len = 128, .block_size = 4};
  EngineOptions uncached = options;
  uncached.prefix_caching = false;
  for (Model* model : {&TestModel(), &ExpandingModel()}) {
    auto engine = MakeEngine(options, *model), plain = MakeEngine(uncached, *model);
    EngineRequest first = MakeRequest("first", RandomPrompt(rng, kPrompt), kAnswer);
    std::map<std::string, Answer> found, wanted;
    ASSERT_TRUE(engine->Add(first).ok());
    Drain(*engine, &found);
    EngineRequest second = MakeRequest("second", first.prompt_ids, 8);
    for (const SampledToken& t : found["first"].tokens) second.prompt_ids.push_back(t.token);
    second.prompt_ids.push_back(77);
    ASSERT_TRUE(plain->Add(second).ok());
    Drain(*plain, &wanted);
    ASSERT_TRUE(engine->Add(second).ok());
    Drain(*engine, &found);
    EXPECT_EQ(Bits(found["second"].tokens), Bits(wanted["second"].tokens));
    // Of the answer all blocks are found, or none.
    const int whole = model == &TestModel() ? kPrompt + kAnswer - 1 : kPrompt;
    EXPECT_EQ(engine->stats().prefix_hits, static_cast<uint64_t>(whole / 4 * 4));
  }
}

// The decode rank lends what it has of a request, and only that.
TEST(MlaFormsTest, ReservationsShareWhatTheRequestWouldCompute) {
  std::mt19937 rng(32);
  auto engine = MakeEngine({.max_model_len = 128, .block_size = 4}, ExpandingModel());
  EngineRequest r = MakeRequest("a", RandomPrompt(rng, 18), 20);
  ASSERT_TRUE(engine->Add(r).ok());
  std::map<std::string, Answer> answers;
  Drain(*engine, &answers);
  std::vector<TokenId> all = r.prompt_ids;
  for (const SampledToken& t : answers["a"].tokens) all.push_back(t.token);
  for (const auto& [prompt, shared] : {std::pair(18, 9), {17, 4}, {19, 4}, {16, 4}, {38, 4}}) {
    const auto reservation =
        engine->Reserve(static_cast<int>(all.size()), all, static_cast<size_t>(prompt), {}, 0);
    ASSERT_TRUE(reservation.ok()) << reservation.status();
    EXPECT_EQ(reservation->shared(), static_cast<size_t>(shared)) << prompt;
    engine->ReleaseReservation(*reservation, false);
  }
}

}  // namespace
}  // namespace switchyard
