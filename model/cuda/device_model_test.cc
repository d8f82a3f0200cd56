// The device's model over kernels that the host runs, beside the host's own model and beside
// itself: chunks, draws, a hand-off, experts behind a dispatcher and on two ranks. Each Forward
// costs seconds here, so there are few.
#include "model/cuda/device_model.h"

#include <gtest/gtest.h>
#include <xxhash.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "common/check.h"
#include "common/status_macros.h"
#include "moe/ep_testing.h"
#include "moe/loopback.h"

namespace switchyard::cuda {
namespace {

ModelOptions Of(DType dtype) {
  ModelOptions options;
  options.dtype = dtype;
  options.max_batch_tokens = 32;
  return options;
}

std::string DirOf(const std::string& name) { return "tests/data/goldens/" + name; }

// As Model::Load where the device is a GPU.
absl::StatusOr<std::unique_ptr<Model>> Load(const std::string& name, const ModelOptions& wanted) {
  ASSIGN_OR_RETURN(ModelConfig config, LoadModelConfig(DirOf(name)));
  ASSIGN_OR_RETURN(ModelOptions options, ResolveModelOptions(config, wanted));
  return DeviceModel::Load(DirOf(name), std::move(config), std::move(options));
}

template <typename T>
T OrDie(absl::StatusOr<T> value) {
  SY_CHECK_MSG(value.ok(), value.status().ToString());
  return *std::move(value);
}

struct Result {
  std::vector<float> logits;
  std::vector<TokenId> drawn;
  size_t at = 0;  // of the last row
  friend bool operator==(const Result& a, const Result& b) {
    return a.logits.size() == b.logits.size() &&
           std::memcmp(a.logits.data(), b.logits.data(), a.logits.size() * sizeof(float)) == 0;
  }
};

// One sequence's tokens from `position` on, in blocks of 16 in descending order. With `draw` the
// last row is drawn.
Result Append(Model& model, KvStorage& kv, std::span<const int32_t> tokens, int position,
              LayerObserver* observer = nullptr, bool draw = false) {
  std::vector<int32_t> blocks(kv.blocks()), rows(tokens.size());
  std::iota(blocks.rbegin(), blocks.rend(), 0);
  std::iota(rows.begin(), rows.end(), 0);
  const AttentionSequence sequence{0, static_cast<int32_t>(tokens.size()), position, blocks};
  const size_t vocab = model.config().vocab_size;
  SamplingParams greedy;
  greedy.temperature = 0;
  Result result{std::vector<float>(tokens.size() * vocab), std::vector<TokenId>(tokens.size(), -7)};
  std::vector<Draw> draws(tokens.size());
  if (draw) draws.back() = {&greedy, 0};
  const absl::Status done =
      model.Forward({.tokens = tokens,
                     .sequences = {&sequence, 1},
                     .logit_rows = rows,
                     .draws = draws,
                     .drawn = result.drawn},
                    kv, observer, {result.logits.data(), {tokens.size(), vocab}});
  EXPECT_TRUE(done.ok()) << done;
  result.at = (tokens.size() - 1) * vocab;
  return result;
}

KvStorage MakeKv(Model& model) {
  return OrDie(model.MakeKv(model.config().KvLayoutFor(model.options().dtype, 16), 2));
}

std::vector<int32_t> Tokens(int count) {
  std::vector<int32_t> tokens;
  for (int i = 0; i < count; ++i) tokens.push_back(3 + i * 37 % 90);
  return tokens;
}

class Layers final : public LayerObserver {
 public:
  void OnLayerWritten(int layer) override { EXPECT_EQ(layer, next++); }
  int next = 0;
};

TEST(DeviceModelTest, LogitsAreTheHosts) {
  const std::vector<int32_t> tokens = Tokens(9);
  for (const char* name : {"deepseek_v3", "deepseek_v2", "qwen3_moe", "olmoe", "mixtral"}) {
    ModelOptions options = Of(DType::kFloat32);
    const auto device = OrDie(Load(name, options));
    options.kernels = "reference";
    const auto host = OrDie(Model::Load(DirOf(name), options));
    KvStorage here = MakeKv(*device), there = MakeKv(*host);
    const Result got = Append(*device, here, tokens, 0), wanted = Append(*host, there, tokens, 0);
    float worst = 0;
    for (size_t i = 0; i < wanted.logits.size(); ++i) {
      const float delta = std::abs(got.logits[i] - wanted.logits[i]);
      worst = std::isnan(delta) ? INFINITY : std::max(worst, delta);
    }
    EXPECT_LT(worst, 1e-3f) << name;
  }
}

// MLA with groups and a shared expert, and GQA with norms of heads.
class DeviceBitsTest : public ::testing::TestWithParam<const char*> {};
INSTANTIATE_TEST_SUITE_P(Architectures, DeviceBitsTest,
                         ::testing::Values("deepseek_v3", "qwen3_moe"));

TEST_P(DeviceBitsTest, ChunksDrawsAndAHandOffKeepThem) {
  const auto model = OrDie(Load(GetParam(), Of(DType::kBfloat16)));
  const std::vector<int32_t> tokens = Tokens(18);
  EXPECT_NE(model->numerics_id().find(":cuda_mma_sm80:"), std::string::npos);
  KvStorage whole = MakeKv(*model), parts = MakeKv(*model), adopted = MakeKv(*model);
  const Result at_once = Append(*model, whole, tokens, 0);

  Append(*model, parts, std::span(tokens).first(9), 0);  // nobody wants its bytes yet
  Layers layers;
  Append(*model, parts, std::span(tokens).subspan(9, 8), 9, &layers);
  EXPECT_EQ(layers.next, model->config().layers);
  std::vector<BlockId> blocks;
  const size_t bytes = parts.layout().BlockBytes();
  for (int b = 0; b < 2; ++b) {
    blocks.push_back(BlockId(b));
    for (int l = 0; l < model->config().layers; ++l) {
      std::memcpy(adopted.Block(l, b), parts.Block(l, b), bytes);
      const uint64_t sum = parts.device()->Checksums(l)[b];
      EXPECT_EQ(sum, XXH3_64bits(parts.Block(l, b), bytes)) << l << " " << b;
      adopted.device()->Checksums(l)[b] = sum;
    }
    // Of the second block the prompt has one row: the others are nobody's.
    const auto* values = reinterpret_cast<const Bf16*>(parts.Block(0, b));
    const size_t row = parts.layout().Addressing().k_token_stride;
    EXPECT_EQ(std::any_of(values + row, values + 16 * row, [](Bf16 v) { return v.bits != 0; }),
              b == 1);
  }
  adopted.device()->TakeFromHost(blocks);
  const auto last = std::span(tokens).last(1);
  const Result here = Append(*model, parts, last, 17), there = Append(*model, adopted, last, 17);
  EXPECT_EQ(here, there);
  EXPECT_EQ(std::memcmp(here.logits.data(), at_once.logits.data() + at_once.at,
                        here.logits.size() * sizeof(float)),
            0);
  const Result drawn = Append(*model, adopted, last, 17, nullptr, true);
  EXPECT_EQ(drawn.drawn[0],
            std::max_element(here.logits.begin(), here.logits.end()) - here.logits.begin());
  EXPECT_EQ(drawn.logits, std::vector<float>(here.logits.size())) << "not asked for";
}

TEST(DeviceModelTest, ExpertsBehindADispatcherGiveTheBitsOfThoseHere) {
  const auto alone = OrDie(Load("deepseek_v3", Of(DType::kBfloat16)));
  const ModelConfig& c = alone->config();
  ModelOptions options = Of(DType::kBfloat16);
  options.placement =
      std::make_shared<const Placement>(OrDie(Placement::InOrder(1, c.layers, c.gate.experts, 1)));
  const auto model = OrDie(Load("deepseek_v3", options));
  const auto dispatcher = OrDie(LoopbackDispatcher::Create({.experts = c.gate.experts,
                                                            .top_k = c.gate.top_k,
                                                            .hidden = c.hidden_size,
                                                            .max_tokens = options.max_batch_tokens,
                                                            .dtype = DType::kBfloat16}));
  const std::vector<int32_t> tokens = Tokens(9);
  KvStorage one = MakeKv(*alone), other = MakeKv(*model);
  const AttentionSequence none{};
  EXPECT_EQ(model->Forward({{}, {&none, 0}, {}}, other, nullptr, {}).code(),
            absl::StatusCode::kFailedPrecondition);
  model->UseDispatcher(dispatcher.get());
  EXPECT_EQ(Append(*alone, one, tokens, 0), Append(*model, other, tokens, 0));
}

// Two ranks, threads of this process, each with half of the experts: rows go from device to device,
// into each other's memory, or through the host, in one micro-batch or two. A step has at most 5
// rows, so that what one rank's experts get is more than they take at once; in the last step only
// one rank has a row, and experts have changed places.
struct Ranked {
  switchyard::DeviceLane lane;
  EpOverlap overlap;
};
class RankedBitsTest : public ::testing::TestWithParam<Ranked> {};
INSTANTIATE_TEST_SUITE_P(Lanes, RankedBitsTest,
                         ::testing::Values(Ranked{switchyard::DeviceLane::kDirect, EpOverlap::kOff},
                                           Ranked{switchyard::DeviceLane::kPeer, EpOverlap::kOn},
                                           Ranked{switchyard::DeviceLane::kStaged,
                                                  EpOverlap::kOn}));

TEST_P(RankedBitsTest, TwoRanksGiveTheBitsOfOne) {
  constexpr int kRanks = 2;
  ModelOptions options = Of(DType::kBfloat16);
  options.max_batch_tokens = 5;
  const auto alone = OrDie(Load("deepseek_v3", options));
  const ModelConfig& c = alone->config();
  std::vector<int32_t> prompts[kRanks] = {Tokens(5), Tokens(10)};
  prompts[1].erase(prompts[1].begin(), prompts[1].begin() + 5);
  const std::vector<int32_t> next = {5};
  Result wanted[kRanks], wanted_next;
  for (int r = 0; r < kRanks; ++r) {
    KvStorage kv = MakeKv(*alone);
    wanted[r] = Append(*alone, kv, prompts[r], 0);
    if (r == 0) wanted_next = Append(*alone, kv, next, 5);
  }
  options.placement = std::make_shared<const Placement>(
      OrDie(Placement::InOrder(1, c.layers, c.gate.experts, kRanks)));
  std::mt19937 rng(6);
  const auto elsewhere = std::make_shared<const Placement>(
      switchyard::testing::RandomPlacement(rng, c.layers, c.gate.experts, 0, kRanks));
  const EpDispatcher::Options dispatch = {.top_k = c.gate.top_k,
                                          .hidden = c.hidden_size,
                                          .max_tokens = options.max_batch_tokens,
                                          .overlap = GetParam().overlap,
                                          .device_lane = GetParam().lane};
  switchyard::testing::RunRanks(
      kRanks, {.lanes = {"shm"}, .ring_bytes = EpDispatcher::RingBytes(dispatch, kEpRingBytesMin)},
      [&](EpGroup& group, int rank) {
        ModelOptions mine = options;
        mine.rank = RankId(rank);
        const auto model = OrDie(Load("deepseek_v3", mine));
        const auto dispatcher = OrDie(EpDispatcher::Create(&group, options.placement, dispatch));
        model->UseDispatcher(dispatcher.get());
        KvStorage kv = MakeKv(*model);
        const auto open = [&](size_t rows) {
          dispatcher->BeginStep(*group.OpenStep({.rows = static_cast<uint32_t>(rows)}));
        };
        open(prompts[rank].size());
        EXPECT_EQ(Append(*model, kv, prompts[rank], 0), wanted[rank]) << "rank " << rank;
        // Others: some move to another slot, some are fetched ahead, some are loaded now.
        SpareExperts spare;
        const ExpertKey ahead{c.layers - 1, elsewhere->Hosted(c.layers - 1, mine.rank).back()};
        spare.emplace(ahead, OrDie(OrDie(model->OpenExperts())->Load(ahead)));
        const absl::Status rehosted = model->Rehost(elsewhere, &spare);
        ASSERT_TRUE(rehosted.ok()) << rehosted;
        dispatcher->UsePlacement(elsewhere);
        model->UseDispatcher(dispatcher.get());
        open(rank == 0);
        if (rank == 0) {
          EXPECT_EQ(Append(*model, kv, next, 5), wanted_next);
        } else {
          const absl::Status done = model->Forward({}, kv, nullptr, {});
          EXPECT_TRUE(done.ok()) << done;
        }
        using enum switchyard::DeviceLane;
        EXPECT_EQ(dispatcher->overlapped_steps(), GetParam().overlap == EpOverlap::kOn ? 2u : 0u);
        EXPECT_EQ(dispatcher->rows_travel(), GetParam().lane == kDirect ? "from device to device"
                                             : GetParam().lane == kPeer
                                                 ? "from device to device, into each other's memory"
                                                 : "through the host, as asked");
      });
}

TEST(DeviceModelTest, WhatIsNotBuiltIsRefused) {
  ModelOptions options;
  options.tensor_ranks = 2;
  EXPECT_EQ(Load("qwen3_moe", options).status().code(), absl::StatusCode::kUnimplemented);
  options.tensor_ranks = 1;
  options.ep_payload = EpPayload::kInt8;
  EXPECT_EQ(Load("qwen3_moe", options).status().code(), absl::StatusCode::kUnimplemented);
  options.ep_payload = EpPayload::kAuto;
  options.reduced_combine = true;
  EXPECT_EQ(Load("qwen3_moe", options).status().code(), absl::StatusCode::kUnimplemented);
  options.reduced_combine = false;
  options.device_index = 1;
  EXPECT_EQ(Load("qwen3_moe", options).status().code(), absl::StatusCode::kFailedPrecondition);
}

}  // namespace
}  // namespace switchyard::cuda
