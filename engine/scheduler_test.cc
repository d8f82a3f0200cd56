#include "engine/scheduler.h"

#include <gtest/gtest.h>

#include <map>
#include <random>
#include <string>

namespace switchyard {
namespace {

EngineRequest Request(const std::string& id, int prompt, int max_tokens, int priority = 0) {
  EngineRequest r;
  r.key = {id, 1};
  for (int i = 0; i < prompt; ++i) r.prompt_ids.push_back((i * 7 + static_cast<int>(id[0])) % 1000);
  r.max_tokens = max_tokens;
  r.priority = priority;
  return r;
}

// Names and rows of a step, e.g. "a:1 b:16".
std::string Describe(std::span<const Scheduler::Chunk> plan) {
  std::string out;
  for (const auto& c : plan) {
    out +=
        (out.empty() ? "" : " ") + c.sequence->request.key.request + ":" + std::to_string(c.rows);
  }
  return out;
}

// Runs one step in which each sampled token is 1.
std::string StepOnce(Scheduler& scheduler) {
  const auto plan = scheduler.Schedule();
  const std::string out = Describe(plan);
  for (const auto& c : plan) {
    const bool samples = c.samples();
    scheduler.Commit(c);
    if (!samples) continue;
    scheduler.Append(*c.sequence, 1);
    if (c.sequence->request.prefill_only || c.sequence->length() >= c.sequence->length_max) {
      scheduler.Finish(*c.sequence);
    }
  }
  scheduler.CheckInvariants();
  return out;
}

SchedulerOptions Small() {
  return {.block_tokens = 4,
          .max_num_batched_tokens = 8,
          .prefill_chunk = 6,
          .max_num_seqs = 4,
          .max_waiting = 8,
          .max_model_len = 64,
          .max_logit_rows = 8};
}

TEST(SchedulerTest, DecodeRowsComeBeforeChunksBeforeAdmissions) {
  BlockPool pool(32);
  Scheduler s(Small(), &pool);
  ASSERT_TRUE(s.Add(Request("a", 3, 9)).ok());
  ASSERT_TRUE(s.Add(Request("b", 12, 9)).ok());
  EXPECT_EQ(StepOnce(s), "a:3 b:5");  // b gets what is left of 8
  EXPECT_EQ(StepOnce(s), "a:1 b:6");  // a decodes; b's chunk is at most 6
  ASSERT_TRUE(s.Add(Request("c", 9, 9, -1)).ok());
  EXPECT_EQ(StepOnce(s), "a:1 b:1 c:6");  // c is first in order, but others are under way
  EXPECT_EQ(StepOnce(s), "a:1 b:1 c:3");
  EXPECT_EQ(StepOnce(s), "c:1 a:1 b:1");
}

TEST(SchedulerTest, AStepExpandsNoMoreThanItsRowsAreWorthOrOneContext) {
  SchedulerOptions o = Small();
  o.max_num_batched_tokens = 12;
  o.prefill_chunk = 4;
  o.max_model_len = 400;
  o.by_class = true;
  BlockPool pool(400);
  Scheduler s(o, &pool);
  for (const char* id : {"a", "b", "c"}) ASSERT_TRUE(s.Add(Request(id, 300, 2)).ok());
  bool together = false, alone = false;
  while (s.HasWork()) {
    const auto plan = s.Schedule();
    ASSERT_FALSE(plan.empty());
    int expanded = 0, chunks = 0;
    for (const auto& c : plan) {
      if (c.sequence->computed >= 300) continue;
      ++chunks;
      expanded += c.sequence->computed + c.rows;
    }
    EXPECT_TRUE(chunks <= 1 || expanded <= 21 * 12) << Describe(plan);
    together = together || chunks == 3;
    alone = alone || (chunks == 1 && expanded > 21 * 12);
    for (const auto& c : plan) {
      const bool samples = c.samples();
      s.Commit(c);
      if (!samples) continue;
      s.Append(*c.sequence, 1);
      if (c.sequence->length() >= c.sequence->length_max) s.Finish(*c.sequence);
    }
    s.CheckInvariants();
  }
  EXPECT_TRUE(together && alone);
}

TEST(SchedulerTest, PreemptsTheNewestOfTheLowestPriority) {
  BlockPool pool(6);
  Scheduler s(Small(), &pool);
  ASSERT_TRUE(s.Add(Request("low", 3, 20, 1)).ok());
  ASSERT_TRUE(s.Add(Request("old", 3, 20)).ok());
  EXPECT_EQ(StepOnce(s), "old:3 low:3");
  ASSERT_TRUE(s.Add(Request("new", 3, 20)).ok());
  while (s.preemptions() == 0) StepOnce(s);
  EXPECT_EQ(s.waiting(), 1);
  while (s.preemptions() == 1) StepOnce(s);  // now `new` gives way to `old`, `low` still waits
  EXPECT_EQ(s.running(), 1);
  for (int i = 0; i < 200 && s.HasWork(); ++i) StepOnce(s);
  EXPECT_FALSE(s.HasWork());
  EXPECT_EQ(pool.counts().available(), 6);
}

TEST(SchedulerTest, UrgentNewcomerTakesTheSlotOfTheNewestOfTheLowest) {
  BlockPool pool(32);
  SchedulerOptions o = Small();
  o.max_num_seqs = 3;
  Scheduler s(o, &pool);
  ASSERT_TRUE(s.Add(Request("low", 2, 20, 2)).ok());
  ASSERT_TRUE(s.Add(Request("mid", 2, 20, 1)).ok());
  ASSERT_TRUE(s.Add(Request("newer", 2, 20, 1)).ok());
  EXPECT_EQ(StepOnce(s), "mid:2 newer:2 low:2");
  ASSERT_TRUE(s.Add(Request("equal", 2, 20, 2)).ok());
  EXPECT_EQ(StepOnce(s), "mid:1 newer:1 low:1") << "who is no more urgent waits";
  ASSERT_TRUE(s.Add(Request("urgent", 2, 2)).ok());
  ASSERT_TRUE(s.Add(Request("Urgent", 2, 2)).ok());
  EXPECT_EQ(StepOnce(s), "mid:1 urgent:2 Urgent:2");
  EXPECT_EQ(s.preemptions(), 2u);
  EXPECT_EQ(StepOnce(s), "urgent:1 Urgent:1 mid:1");
  EXPECT_EQ(StepOnce(s), "mid:1 newer:4 low:3") << "the first to go is the last to come back";
}

TEST(SchedulerTest, UrgentNewcomerTakesBlocksAndNobodyGivesWayInVain) {
  BlockPool pool(9);
  Scheduler s(Small(), &pool);
  for (const char* id : {"first", "old", "young"}) {
    ASSERT_TRUE(s.Add(Request(id, 6, 20, id == std::string("first") ? 0 : 1)).ok());
  }
  while (pool.counts().available() > 0) StepOnce(s);
  EXPECT_EQ(s.running(), 3);
  // With all blocks but those of `first`, which is no less urgent, it would not fit.
  ASSERT_TRUE(s.Add(Request("large", 26, 2)).ok());
  StepOnce(s);
  EXPECT_EQ(s.preemptions(), 0u);
  ASSERT_TRUE(s.Abort({"large", 1}));
  ASSERT_TRUE(s.Add(Request("urgent", 3, 2)).ok());
  EXPECT_EQ(StepOnce(s), "first:1 old:1 urgent:3");
  EXPECT_EQ(s.preemptions(), 1u);
}

TEST(SchedulerTest, UrgentPromptGoesBeforeOnesThatAreUnderWay) {
  BlockPool pool(32);
  Scheduler s(Small(), &pool);
  EngineRequest long_prompt = Request("long", 40, 9, 1);
  long_prompt.prefill_only = true;  // never preempted, but passed
  ASSERT_TRUE(s.Add(long_prompt).ok());
  EXPECT_EQ(StepOnce(s), "long:6");
  ASSERT_TRUE(s.Add(Request("urgent", 7, 9)).ok());
  EXPECT_EQ(StepOnce(s), "urgent:6 long:2");
  EXPECT_EQ(StepOnce(s), "urgent:1 long:6");
}

TEST(SchedulerTest, NobodyGivesWayForever) {
  BlockPool pool(32);
  SchedulerOptions o = Small();
  o.max_num_seqs = 1;
  Scheduler s(o, &pool);
  ASSERT_TRUE(s.Add(Request("low", 3, 30, 1)).ok());
  for (int i = 0; i < 10; ++i) {
    StepOnce(s);
    ASSERT_TRUE(s.Add(Request("u" + std::to_string(i), 1, 1)).ok());
    StepOnce(s);
  }
  EXPECT_EQ(s.preemptions(), static_cast<uint64_t>(kGiveWayMax));
  while (s.Contains({"low", 1})) StepOnce(s);
}

// One has the slot and may not be asked for it again; the other, more urgent, has the blocks.
TEST(SchedulerTest, WhoHasTheSlotAndWhoHasTheBlocksDoNotWaitForEachOther) {
  BlockPool pool(4);
  SchedulerOptions o = Small();
  o.max_num_seqs = 1;
  o.prefix_caching = false;
  Scheduler s(o, &pool);
  ASSERT_TRUE(s.Add(Request("low", 2, 12, 1)).ok());
  for (int i = 0; i < kGiveWayMax; ++i) {
    ASSERT_EQ(StepOnce(s).substr(0, 4), "low:");
    ASSERT_TRUE(s.Add(Request("u" + std::to_string(i), 1, 1)).ok());
    StepOnce(s);
  }
  ASSERT_EQ(StepOnce(s), "low:5");
  const EngineRequest urgent = Request("adopted", 8, 2);
  const std::vector<BlockId> blocks = pool.Lease(2).value();
  ASSERT_TRUE(s.Adopt(urgent, blocks, 0, 1).ok());
  std::string ran;
  for (int i = 0; i < 30 && s.Contains({"low", 1}); ++i) {
    ASSERT_TRUE(s.HasWork()) << ran;
    ran += StepOnce(s) + "; ";
  }
  EXPECT_FALSE(s.Contains({"low", 1})) << ran;
  EXPECT_FALSE(s.Contains(urgent.key)) << ran;
}

TEST(SchedulerTest, HandOffOfAnUrgentRequestTakesBlocks) {
  BlockPool pool(4);
  Scheduler s(Small(), &pool);
  ASSERT_TRUE(s.Add(Request("low", 14, 3, 1)).ok());
  while (s.Schedule().empty() || StepOnce(s) != "low:1") {
  }
  s.MakeLeasable(3, 1);
  EXPECT_EQ(s.Leasable(1), 0) << "of the same priority";
  s.MakeLeasable(5, 0);
  EXPECT_EQ(s.preemptions(), 0u) << "in vain";
  s.MakeLeasable(3, 0);
  EXPECT_EQ(s.preemptions(), 1u);
  EXPECT_EQ(s.Leasable(0), 4);
  EXPECT_EQ(s.Leasable(1), 0) << "what the preempted one waits for";
}

TEST(SchedulerTest, RefusesWhatCouldNeverFit) {
  BlockPool pool(4);
  Scheduler s(Small(), &pool);
  EXPECT_TRUE(s.Add(Request("fits", 8, 9)).ok());  // the 17th token needs no KV
  const absl::Status no = s.Add(Request("x", 8, 10));
  EXPECT_EQ(no.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(no.message(),
            "prompt of 8 tokens with max_tokens 10 may need 5 KV blocks of 4 tokens; kv_blocks is "
            "4");
  EngineRequest prefill = Request("p", 16, 40);
  prefill.prefill_only = true;
  EXPECT_TRUE(s.Add(prefill).ok());
  EXPECT_EQ(s.Add(prefill).code(), absl::StatusCode::kAlreadyExists);
  for (int i = 0; i < 6; ++i) ASSERT_TRUE(s.Add(Request(std::string(1, 'A' + i), 1, 1)).ok());
  EXPECT_EQ(s.Add(Request("full", 1, 1)).code(), absl::StatusCode::kResourceExhausted);
}

TEST(SchedulerTest, SleepsWhileBlocksAreHeldElsewhere) {
  BlockPool pool(4);
  Scheduler s(Small(), &pool);
  EngineRequest p = Request("p", 9, 5);
  p.prefill_only = true;
  ASSERT_TRUE(s.Add(p).ok());
  EXPECT_EQ(StepOnce(s), "p:6");
  EXPECT_EQ(StepOnce(s), "p:3");
  EXPECT_EQ(s.held(), 1);
  EXPECT_EQ(pool.counts().owned, 3);
  ASSERT_TRUE(s.Add(Request("a", 5, 5)).ok());
  EXPECT_TRUE(s.HasWork());
  EXPECT_EQ(StepOnce(s), "");
  EXPECT_FALSE(s.HasWork());    // nothing can change until p is released
  EXPECT_EQ(s.Leasable(0), 0);  // a newcomer's hand-off does not overtake a
  EXPECT_TRUE(s.Release(p.key));
  EXPECT_FALSE(s.Release(p.key));
  EXPECT_TRUE(s.HasWork());
  EXPECT_EQ(StepOnce(s), "a:5");
}

TEST(SchedulerTest, PromptScoresLimitRowsByLogits) {
  BlockPool pool(32);
  SchedulerOptions o = Small();
  o.max_logit_rows = 4;
  Scheduler s(o, &pool);
  EngineRequest r = Request("a", 9, 5);
  r.prompt_logprobs = 0;
  ASSERT_TRUE(s.Add(r).ok());
  ASSERT_TRUE(s.Add(Request("b", 3, 5)).ok());
  EXPECT_EQ(Describe(s.Schedule()), "a:4");  // no logits are left for b's token
}

// Adds a request that has the tokens of "a".
void AddLikeA(Scheduler& s, const std::string& id, int prompt, const std::string& salt = "",
              int prompt_logprobs = -1) {
  EngineRequest r = Request("a", prompt, 9);
  r.key.request = id;
  r.cache_salt = salt;
  r.prompt_logprobs = prompt_logprobs;
  ASSERT_TRUE(s.Add(r).ok());
}

TEST(SchedulerTest, WhatWasComputedIsNotComputedAgain) {
  BlockPool pool(32);
  Scheduler s(Small(), &pool);
  AddLikeA(s, "a", 9);
  EXPECT_EQ(StepOnce(s), "a:6");
  EXPECT_EQ(StepOnce(s), "a:3");
  AddLikeA(s, "b", 9);  // two full blocks are there
  EXPECT_EQ(StepOnce(s), "a:1 b:1");
  EXPECT_EQ(s.prefix_queries(), 18u);
  EXPECT_EQ(s.prefix_hits(), 8u);
  AddLikeA(s, "c", 8);  // all of it is, but the last token's logits are wanted
  EXPECT_EQ(StepOnce(s), "a:1 b:1 c:4");
  AddLikeA(s, "salted", 9, "tenant");
  EXPECT_EQ(StepOnce(s), "a:1 b:1 c:1 salted:5");
}

TEST(SchedulerTest, ScoresOfThePromptReadNothingFromTheCache) {
  BlockPool pool(32);
  Scheduler s(Small(), &pool);
  AddLikeA(s, "a", 9);
  StepOnce(s);
  StepOnce(s);
  AddLikeA(s, "scored", 9, "", 0);
  EXPECT_EQ(StepOnce(s), "a:1 scored:6");
  EXPECT_EQ(s.prefix_hits(), 0u);
}

TEST(SchedulerTest, SamplesThatComeTogetherComputeTheirPromptOnce) {
  BlockPool pool(32);
  Scheduler s(Small(), &pool);
  for (const char* id : {"a", "b", "c"}) AddLikeA(s, id, 13);
  EXPECT_EQ(StepOnce(s), "a:6");
  EXPECT_EQ(StepOnce(s), "a:6");
  EXPECT_EQ(StepOnce(s), "a:1 b:1 c:1");
  EXPECT_EQ(s.prefix_hits(), 24u);
}

TEST(SchedulerTest, CachedBlocksGiveWay) {
  BlockPool pool(6);
  Scheduler s(Small(), &pool);
  AddLikeA(s, "a", 9);
  for (int i = 0; i < 12; ++i) StepOnce(s);
  EXPECT_EQ(pool.counts().owned, 0);
  EXPECT_EQ(pool.counts().cached, 4);  // of 17 tokens with KV
  EXPECT_EQ(s.Leasable(0), 6);
  ASSERT_TRUE(s.Add(Request("z", 20, 2)).ok());
  for (int i = 0; i < 6; ++i) StepOnce(s);
  EXPECT_EQ(pool.counts().cached, 5);  // its own; its 21st token took the last one of a
  EXPECT_EQ(s.prefix_hits(), 0u);
}

// The whole of a request's history, as one number: what its KV "is" at each position.
uint64_t Mix(uint64_t prefix, TokenId token) {
  uint64_t h = (prefix ^ static_cast<uint64_t>(token)) * 0x9E3779B97F4A7C15ull;
  h ^= h >> 29;
  return h * 0xBF58476D1CE4E5B9ull + 1;
}
TokenId Next(uint64_t state) { return static_cast<TokenId>(state >> 54); }

// Drives a scheduler with a model whose next token is a hash of the KV that the block table leads
// to: a lost, stale or foreign block changes the tokens.
class Simulation {
 public:
  explicit Simulation(uint32_t seed)
      : rng_(seed),
        by_class_(Random(0, 1) == 0),
        pool_(Random(8, 40)),
        scheduler_(Options(), &pool_) {
    kv_.resize(static_cast<size_t>(pool_.counts().total) * 4);
  }

  void Run() {
    for (int step = 0; step < 400; ++step) {
      Arrive();
      if (Random(0, 9) == 0 && !live_.empty()) Abort();
      if (Random(0, 3) == 0) ReleaseOne();
      ModelStep();
    }
    for (int idle = 0; !live_.empty(); ++idle) {
      ASSERT_LT(idle, 100000) << "livelock";
      while (!held_.empty()) ReleaseOne();
      while (!leased_.empty()) ReturnLease();
      ASSERT_TRUE(scheduler_.HasWork()) << live_.size() << " requests are stuck";
      ModelStep();
    }
    while (!held_.empty()) ReleaseOne();
    while (!leased_.empty()) ReturnLease();
    EXPECT_EQ(pool_.counts().available(), pool_.counts().total);
    EXPECT_EQ(scheduler_.waiting() + scheduler_.running() + scheduler_.held(), 0);
    EXPECT_FALSE(scheduler_.HasWork());
  }

  uint64_t preemptions() const { return scheduler_.preemptions(); }
  uint64_t hits() const { return scheduler_.prefix_hits(); }
  int finished() const { return finished_; }

 private:
  struct Lease {
    std::vector<BlockId> blocks;
    size_t lent = 0;  // of them, what the cache had
  };
  int Random(int low, int high) { return std::uniform_int_distribution<int>(low, high)(rng_); }
  SchedulerOptions Options() {
    return {.block_tokens = 4,
            .max_num_batched_tokens = Random(1, 24),
            .prefill_chunk = Random(1, 24),
            .max_num_seqs = Random(1, 9),
            .max_waiting = 6,
            .max_model_len = 60,
            .max_logit_rows = Random(1, 24),
            .prefix_caching = Random(0, 4) > 0,
            .by_class = by_class_};
  }
  // What a token of a sequence with such a prompt adds to the state.
  TokenId Class(size_t position, size_t prompt, TokenId token) const {
    return by_class_ && position >= prompt ? token + 4096 : token;
  }
  uint64_t State(std::span<const TokenId> tokens, size_t prompt) const {
    uint64_t h = 0;
    for (size_t i = 0; i < tokens.size(); ++i) h = Mix(h, Class(i, prompt, tokens[i]));
    return h;
  }
  uint64_t& Kv(const std::vector<BlockId>& blocks, int position) {
    return kv_[static_cast<size_t>(blocks.at(static_cast<size_t>(position / 4)).value() * 4 +
                                   position % 4)];
  }

  void Arrive() {
    if (Random(0, 2) != 0) return;
    EngineRequest r;
    r.key = {std::to_string(arrived_++), 1};
    // Half of the prompts begin as others do.
    for (int i = Random(-15, 15), family = Random(0, 2); i > 0; --i) {
      r.prompt_ids.push_back(family * 100 + i % 5);
    }
    for (int i = Random(1, 15); i > 0; --i) r.prompt_ids.push_back(Random(0, 1023));
    // Some are a conversation's next turn.
    if (!told_.empty() && Random(0, 2) == 0) r.prompt_ids = told_;
    std::vector<TokenId> all = r.prompt_ids;
    r.max_tokens = Random(1, 30);
    for (int i = Random(0, r.max_tokens - 1) / 2; i > 0; --i) {
      r.generated_ids.push_back(Next(State(all, r.prompt_ids.size())));
      all.push_back(r.generated_ids.back());
    }
    r.priority = Random(0, 2);
    r.prompt_logprobs = Random(0, 4) == 0 ? 0 : -1;
    const int kind = Random(0, 3);
    r.prefill_only = kind == 0;
    if (kind == 1 && static_cast<int>(r.generated_ids.size()) + 1 < r.max_tokens) {
      Lease lease;
      if (Random(0, 1) == 0)
        lease.blocks = scheduler_.LendPrefix(all, r.prompt_ids.size(), r.cache_salt);
      lease.lent = lease.blocks.size();
      const int blocks = (static_cast<int>(all.size()) + 3) / 4 - static_cast<int>(lease.lent);
      scheduler_.MakeLeasable(blocks, r.priority);
      if (blocks > scheduler_.Leasable(r.priority)) return scheduler_.ReturnPrefix(lease.blocks);
      const std::vector<BlockId> leased = pool_.Lease(blocks).value();
      lease.blocks.insert(lease.blocks.end(), leased.begin(), leased.end());
      if (Random(0, 3) == 0) return leased_.push_back(lease);  // a hand-off that never commits
      uint64_t state = 0;
      for (size_t i = 0; i < all.size(); ++i) {
        state = Mix(state, Class(i, r.prompt_ids.size(), all[i]));
        if (i >= lease.lent * 4) Kv(lease.blocks, static_cast<int>(i)) = state;
      }
      if (!scheduler_.Adopt(r, lease.blocks, static_cast<int>(lease.lent), Next(state)).ok()) {
        return leased_.push_back(lease);
      }
    } else if (!scheduler_.Add(r).ok()) {
      return;
    }
    live_[r.key] = r;
  }

  void Abort() {
    const auto it = std::next(live_.begin(), Random(0, static_cast<int>(live_.size()) - 1));
    ASSERT_TRUE(scheduler_.Abort(it->first));
    live_.erase(it);
  }
  void ReleaseOne() {
    if (!leased_.empty() && Random(0, 1) == 0) ReturnLease();
    if (held_.empty()) return;
    ASSERT_TRUE(scheduler_.Release(held_.back()));
    held_.pop_back();
  }
  void ReturnLease() {
    const auto blocks = std::span(leased_.back().blocks);
    scheduler_.ReturnPrefix(blocks.first(leased_.back().lent));
    pool_.Release(blocks.subspan(leased_.back().lent));
    leased_.pop_back();
    scheduler_.OnBlocksFreed();
  }

  void ModelStep() {
    const auto plan = scheduler_.Schedule();
    for (const auto& c : plan) {
      Sequence& s = *c.sequence;
      ASSERT_GT(c.rows, 0);
      ASSERT_LE(s.gave_way, kGiveWayMax);
      for (int p = s.computed; p < s.computed + c.rows; ++p) {
        const auto i = static_cast<size_t>(p);
        Kv(s.blocks, p) = Mix(p == 0 ? 0 : Kv(s.blocks, p - 1),
                              Class(i, s.request.prompt_ids.size(), s.tokens[i]));
      }
    }
    if (Random(0, 19) == 0) return;  // the step fails after it wrote: it runs again
    for (const auto& c : plan) {
      Sequence& s = *c.sequence;
      const bool samples = c.samples();
      scheduler_.Commit(c);
      if (s.wants_prompt_scores()) {
        s.prompt_scores.resize(
            std::max(s.prompt_scores.size(),
                     static_cast<size_t>(std::min(s.computed, s.prompt_length() - 1))));
      }
      if (!samples) continue;
      const TokenId token = Next(Kv(s.blocks, s.computed - 1));
      ASSERT_EQ(token, Next(State(s.tokens, s.request.prompt_ids.size()))) << s.request.key.request;
      scheduler_.Append(s, token);
      if (s.request.prefill_only || s.length() >= s.length_max) Done(s);
    }
    scheduler_.CheckInvariants();
  }
  void Done(Sequence& s) {
    const EngineRequest& r = live_.at(s.request.key);
    std::vector<TokenId> want = r.prompt_ids;
    const size_t length = s.request.prefill_only
                              ? r.prompt_ids.size() + r.generated_ids.size() + 1
                              : std::min<size_t>(r.prompt_ids.size() + r.max_tokens, 60);
    while (want.size() < length) want.push_back(Next(State(want, r.prompt_ids.size())));
    ASSERT_EQ(s.tokens, want);
    if (want.size() <= 30) told_ = want;
    live_.erase(s.request.key);
    if (s.request.prefill_only) held_.push_back(s.request.key);
    scheduler_.Finish(s);
    ++finished_;
  }

  std::mt19937 rng_;
  const bool by_class_;  // generated tokens have other KV than a prompt's
  BlockPool pool_;
  Scheduler scheduler_;
  std::vector<uint64_t> kv_;
  std::map<AttemptKey, EngineRequest> live_;
  std::vector<AttemptKey> held_;
  std::vector<Lease> leased_;
  std::vector<TokenId> told_;  // the last request's prompt and answer
  int arrived_ = 0, finished_ = 0;
};

TEST(SchedulerTest, EveryRequestGetsItsTokensInAnyWeather) {
  const uint32_t base = GTEST_FLAG_GET(random_seed);
  uint64_t preemptions = 0, hits = 0;
  int finished = 0;
  for (uint32_t seed = base; seed != base + 150; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    Simulation sim(seed);
    sim.Run();
    if (testing::Test::HasFatalFailure()) return;
    preemptions += sim.preemptions();
    hits += sim.hits();
    finished += sim.finished();
  }
  EXPECT_GT(preemptions, 100u);
  EXPECT_GT(hits, 2000u);
  EXPECT_GT(finished, 3000);
}

}  // namespace
}  // namespace switchyard
