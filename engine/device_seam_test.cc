// What the engine promises a model that computes elsewhere: which tokens that one may draw, and
// when blocks that a peer has written are its to fetch.
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <map>

#include "engine/engine.h"
#include "engine/test_model.h"

namespace switchyard {
namespace {

class Recorder final : public KvDevice {
 public:
  explicit Recorder(std::vector<BlockId>* blocks) : blocks_(*blocks) {}
  void TakeFromHost(std::span<const BlockId> blocks) override {
    blocks_.insert(blocks_.end(), blocks.begin(), blocks.end());
  }
  uint64_t* Checksums(int) override { return nullptr; }  // nothing is handed off

 private:
  std::vector<BlockId>& blocks_;
};

// Draws where it is asked to, and leaves no logits there.
class DrawingModel final : public Model {
 public:
  const ModelConfig& config() const override { return TestModel().config(); }
  const ModelOptions& options() const override { return TestModel().options(); }
  const std::string& numerics_id() const override { return TestModel().numerics_id(); }
  const std::vector<std::string>& notices() const override { return TestModel().notices(); }
  void UseDispatcher(Dispatcher* dispatcher) override { TestModel().UseDispatcher(dispatcher); }
  absl::Status Rehost(std::shared_ptr<const Placement> p, SpareExperts* spare) override {
    return TestModel().Rehost(std::move(p), spare);
  }
  absl::StatusOr<std::unique_ptr<ExpertSource>> OpenExperts() const override {
    return TestModel().OpenExperts();
  }
  absl::StatusOr<KvStorage> MakeKv(const KvLayout& layout, int blocks) override {
    auto kv = KvStorage::Create(layout, blocks);
    if (kv.ok()) kv->Attach(std::make_unique<Recorder>(&from_host));
    return kv;
  }
  bool Draws(const SamplingParams&) const override { return true; }
  absl::Status Forward(const ForwardBatch& batch, KvStorage& kv, LayerObserver* observer,
                       Matrix<float> logits) override {
    const absl::Status done = TestModel().Forward(batch, kv, observer, logits);
    EXPECT_EQ(batch.draws.size(), batch.logit_rows.size());
    for (size_t i = 0; i < batch.draws.size(); ++i) {
      const Draw& d = batch.draws[i];
      if (d.params == nullptr) continue;
      const std::span<float> row(logits.row(i), logits.cols());
      batch.drawn[i] = poisoned ? -1 : ChooseToken(row, *d.params, d.position);
      std::fill(row.begin(), row.end(), std::numeric_limits<float>::quiet_NaN());
      ++draws;
    }
    return done;
  }

  bool poisoned = false;
  int draws = 0;
  std::vector<BlockId> from_host;
};

std::vector<EngineRequest> Requests() {
  std::vector<EngineRequest> requests;
  for (int i = 0; i < 8; ++i) {
    EngineRequest r;
    r.key = {std::to_string(i), 1};
    for (int t = 0; t < 5 + 7 * i; ++t) r.prompt_ids.push_back(4 + (t * 31 + i) % 4000);
    r.max_tokens = 9;
    r.ignore_eos = i != 7;
    r.sampling.temperature = i % 2 == 0 ? 0.0f : 0.9f;
    r.sampling.seed = static_cast<uint64_t>(i) * 77;
    // What the host has to decide: reports, scored prompts, penalties, tokens that may not come
    // yet.
    if (i == 1) r.sampling.logprobs = 0;
    if (i == 2) r.prompt_logprobs = 0;
    if (i == 3) r.sampling.repetition_penalty = 1.3f;
    if (i == 7) r.min_tokens = 4;
    requests.push_back(std::move(r));
  }
  return requests;
}

std::map<std::string, std::vector<TokenId>> Answers(Model& model) {
  auto engine = Engine::Create(&model, {.max_model_len = 128, .prefill_chunk = 16}).value();
  for (EngineRequest& r : Requests()) EXPECT_TRUE(engine->Add(std::move(r)).ok());
  std::map<std::string, std::vector<TokenId>> answers;
  while (engine->HasWork()) {
    const auto outputs = engine->Step();
    if (!outputs.ok()) {
      ADD_FAILURE() << outputs.status();
      break;
    }
    for (const EngineOutput& o : *outputs) {
      EXPECT_TRUE(o.token.has_value()) << o.error;
      if (o.token) answers[o.key.request].push_back(o.token->token);
    }
  }
  return answers;
}

TEST(DeviceSeamTest, TokensThatTheModelDrawsAreThoseOfTheHost) {
  DrawingModel model;
  FaultyModel draws_none(TestModel());  // and is told no fault
  const auto wanted = Answers(draws_none), got = Answers(model);
  EXPECT_EQ(got, wanted);
  EXPECT_EQ(Answers(TestModel()), wanted);
  size_t tokens = 0;
  for (const auto& [id, answer] : wanted) tokens += answer.size();
  // Of request 1 and 3 none is drawn by the model, of 7 the first 4 are not.
  EXPECT_EQ(model.draws,
            static_cast<int>(tokens - wanted.at("1").size() - wanted.at("3").size() - 4));
}

TEST(DeviceSeamTest, ADrawFromLogitsThatAreNoNumbersFailsItsRequest) {
  DrawingModel model;
  model.poisoned = true;
  auto engine = Engine::Create(&model, {.max_model_len = 64}).value();
  ASSERT_TRUE(engine->Add(std::move(Requests()[0])).ok());
  const auto outputs = engine->Step();
  ASSERT_TRUE(outputs.ok()) << outputs.status();
  ASSERT_EQ(outputs->size(), 1u);
  EXPECT_EQ(outputs->front().finish, FinishReason::kError);
}

TEST(DeviceSeamTest, BlocksOfAnAdoptedRequestAreFetchedButNotThoseThatItShares) {
  DrawingModel model;
  auto engine = Engine::Create(&model, {.max_model_len = 128}).value();
  EngineRequest r = std::move(Requests()[6]);  // 47 tokens: 3 blocks of 16
  ASSERT_TRUE(engine->Add(r).ok());
  while (engine->HasWork()) ASSERT_TRUE(engine->Step().ok());
  EXPECT_TRUE(model.from_host.empty());
  r.key.attempt = 2;
  const auto reservation = engine->Reserve(47, r.prompt_ids, 47, {}, 0);
  ASSERT_TRUE(reservation.ok()) << reservation.status();
  ASSERT_EQ(reservation->shared(), 2u);  // the first request left them in the cache
  EXPECT_TRUE(model.from_host.empty());
  ASSERT_TRUE(engine->Adopt(r, *reservation, 5).ok());
  EXPECT_EQ(model.from_host, std::vector<BlockId>{reservation->blocks[2]});
}

}  // namespace
}  // namespace switchyard
