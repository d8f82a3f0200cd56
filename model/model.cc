#include "model/model.h"

#include <new>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "kernels/token_weights.h"
#include "model/executor.h"
#include "model/head_share.h"
#include "model/hosted_experts.h"
#include "model/load.h"
#include "model/weight_source.h"
#include "model/weights.h"
#include "moe/loopback.h"

namespace switchyard {
namespace {

class LoadedModel final : public Model {
 public:
  LoadedModel(ModelConfig config, ModelOptions options, KernelSet kernels)
      : config_(std::move(config)),
        options_(std::move(options)),
        kernels_(std::move(kernels)),
        context_(options_.threads),
        rope_(config_.MakeRopeTable(options_.max_model_len)),
        heads_(HeadsOf(config_, options_.tensor_rank, options_.tensor_ranks)),
        executor_(config_, weights_),
        draw_memory_(static_cast<size_t>(options_.threads)) {}

  absl::Status LoadFrom(const std::string& dir);

  const ModelConfig& config() const override { return config_; }
  const ModelOptions& options() const override { return options_; }
  const std::string& numerics_id() const override { return numerics_id_; }
  const std::vector<std::string>& notices() const override { return notices_; }
  absl::Status Rehost(std::shared_ptr<const Placement> placement, SpareExperts* spare) override;
  absl::StatusOr<std::unique_ptr<ExpertSource>> OpenExperts() const override;
  void UseDispatcher(Dispatcher* dispatcher) override { dispatcher_ = dispatcher; }
  void UseExchange(RowExchange* exchange) override { exchange_ = exchange; }
  bool Draws(const SamplingParams&) const override { return true; }
  absl::Status Forward(const ForwardBatch& batch, KvStorage& kv, LayerObserver* observer,
                       Matrix<float> logits) override;

 private:
  LoadWeightsOptions WeightsOptions(HostedExperts hosted) const {
    return {.dtype = options_.dtype,
            .quantization = options_.quantization,
            .heads = heads_,
            .mla_keys = options_.expands_prompts(),
            .local_experts = std::move(hosted),
            .cache = cache_.get(),
            .progress = {}};
  }
  ExpertsFrom Source() const;
  absl::Status MakeLoopback();
  void Embed(std::span<const int32_t> tokens, Matrix<float> residual);  // [T, H]
  // Gives the batches their rows, and this rank those of them that are its own.
  void ShareBatch(const ForwardBatch& batch, std::span<MicroBatch> batches);

  const ModelConfig config_;
  ModelOptions options_;  // but for the placement, as given
  const KernelSet kernels_;
  KernelContext context_;
  const RopeTable rope_;
  const HeadShare heads_;
  std::unique_ptr<Dispatcher> loopback_;  // without a placement
  Dispatcher* dispatcher_ = nullptr;
  RowExchange* exchange_ = nullptr;  // with tensor parallelism
  ModelWeights weights_;
  std::string dir_;
  std::string digest_, numerics_id_;
  std::unique_ptr<PackedCache> cache_;
  std::vector<std::string> notices_;
  Executor executor_;
  MicroBatch batches_[2];
  GrowingArray<float> residual_;
  LastHiddenRows last_hidden_;
  std::vector<DrawMemory> draw_memory_;  // a thread's each
};

absl::Status LoadedModel::LoadFrom(const std::string& dir) {
  dir_ = dir;
  ASSIGN_OR_RETURN(const OpenedModel opened, OpenModel(dir, config_, options_.dummy_weights));
  std::vector<int32_t> all(config_.gate.experts);
  std::iota(all.begin(), all.end(), 0);
  const auto local = [&](int layer) -> std::span<const int32_t> {
    if (options_.placement == nullptr) return all;
    return options_.placement->Hosted(layer, options_.rank);
  };
  if (options_.placement == nullptr) RETURN_IF_ERROR(MakeLoopback());
  digest_ = opened.digest;
  numerics_id_ = NumericsId(opened.digest, config_, options_, kernels_.name);
  if (!options_.weights_cache.empty()) {
    // Which form computes does not change a weight: both share a folder.
    ModelOptions packed = options_;
    packed.mla = MlaForms::kAbsorbed;
    cache_ = std::make_unique<PackedCache>(
        options_.weights_cache, NumericsId(opened.digest, config_, packed, kernels_.name));
  }
  LoadWeightsOptions load = WeightsOptions(local);
  load.progress = options_.progress;
  ASSIGN_OR_RETURN(weights_, LoadWeights(*opened.source, config_, kernels_, context_.pool, load));
  notices_ = config_.notices;
  for (std::string& notice : opened.source->notices()) notices_.push_back(std::move(notice));
  if (cache_ != nullptr) notices_.push_back(cache_->Report());
  if (options_.reduced_combine) {
    notices_.push_back(
        "--ep-combine reduced: the same request may give other bits when experts are elsewhere");
  }
  return absl::OkStatus();
}

ExpertsFrom LoadedModel::Source() const {
  return {.dir = dir_,
          .config = config_,
          .dummy_weights = options_.dummy_weights,
          .digest = digest_,
          .kernels = kernels_,
          .load = WeightsOptions(nullptr)};
}

absl::StatusOr<std::unique_ptr<ExpertSource>> LoadedModel::OpenExperts() const {
  return OpenExpertSource(Source());
}

absl::Status LoadedModel::Rehost(std::shared_ptr<const Placement> placement, SpareExperts* spare) {
  if (options_.placement == nullptr) {
    return absl::FailedPreconditionError("a model without a placement hosts all experts");
  }
  RETURN_IF_ERROR(CheckPlacement(config_, *placement, options_.rank));
  const HostedExperts hosted = [&](int layer) { return placement->Hosted(layer, options_.rank); };
  const HostedExperts there = [&](int layer) -> std::span<const int32_t> {
    return weights_.layers[layer].logical_experts;
  };
  RETURN_IF_ERROR(LoadExperts(Source(), MissingExperts(config_.layers, there, hosted, *spare),
                              context_.pool, spare));
  RehostExperts(hosted, &weights_, spare);
  // The rest of the options may be read by sources on other threads.
  options_.placement = std::move(placement);
  dispatcher_ = nullptr;  // it speaks of the old placement
  return absl::OkStatus();
}

absl::Status LoadedModel::MakeLoopback() {
  ASSIGN_OR_RETURN(loopback_, LoopbackDispatcher::Create({.experts = config_.gate.experts,
                                                          .top_k = config_.gate.top_k,
                                                          .hidden = config_.hidden_size,
                                                          .max_tokens = options_.max_batch_tokens,
                                                          .dtype = options_.dtype,
                                                          .int8_tokens = options_.rounds_tokens(),
                                                          .pool = &context_.pool}));
  dispatcher_ = loopback_.get();
  return absl::OkStatus();
}

void LoadedModel::Embed(std::span<const int32_t> tokens, Matrix<float> residual) {
  const size_t hidden = config_.hidden_size;
  for (size_t t = 0; t < tokens.size(); ++t) {
    const size_t at = tokens[t] * hidden;
    float* row = residual.row(t);
    if (weights_.embedding_dtype == DType::kBfloat16) {
      const Bf16* from = reinterpret_cast<const Bf16*>(weights_.embedding.data()) + at;
      for (size_t i = 0; i < hidden; ++i) row[i] = ToFloat(from[i]);
    } else {
      std::copy_n(reinterpret_cast<const float*>(weights_.embedding.data()) + at, hidden, row);
    }
  }
}

void LoadedModel::ShareBatch(const ForwardBatch& batch, std::span<MicroBatch> batches) {
  const auto prompts = options_.expands_prompts() ? batch.prompts : std::span<const int32_t>();
  ShareRows(batch.sequences, prompts, batch.tokens.size(), options_.tensor_rank,
            options_.tensor_ranks, batches);
  size_t rows = 0;
  for (const MicroBatch& b : batches) rows += b.own.count;
  const Matrix<float> residual = residual_.Get(rows, config_.hidden_size);
  size_t first = 0;
  for (MicroBatch& b : batches) {
    b.residual = residual.Slice(first, b.own.count);
    Embed(batch.tokens.subspan(b.first + b.own.begin, b.own.count), b.residual);
    first += b.own.count;
  }
}

absl::Status LoadedModel::Forward(const ForwardBatch& batch, KvStorage& kv, LayerObserver* observer,
                                  Matrix<float> logits) {
  RETURN_IF_ERROR(CheckForward(config_, options_, batch, kv, logits));
  if (dispatcher_ == nullptr) {
    return absl::FailedPreconditionError("the model has a placement and no dispatcher");
  }
  if (options_.tensor_ranks > 1 && exchange_ == nullptr) {
    return absl::FailedPreconditionError("the model has some of the heads and no exchange");
  }
  const auto batches = std::span(batches_).first(dispatcher_->micro_batches());
  ShareBatch(batch, batches);
  // Integer weights quantise rows as they are; what BF16 ones round may be rounded before.
  const DType wire = options_.quantization ? DType::kFloat32 : options_.dtype;
  StepContext step{config_, kernels_, context_, rope_, *dispatcher_, kv, heads_, exchange_, wire};
  RETURN_IF_ERROR(executor_.Run(step, batches, observer));
  if (batch.logit_rows.empty()) return absl::OkStatus();
  ASSIGN_OR_RETURN(const Matrix<float> x,
                   LastHidden(exchange_, batches, batch.logit_rows, last_hidden_));
  if (x.rows() == 0) return absl::OkStatus();
  kernels_.norm->RmsNorm(context_, x, weights_.final_norm, config_.rms_norm_eps, x);
  kernels_.gemm->Gemm(context_, x, weights_.head, logits);
  if (batch.draws.empty()) return absl::OkStatus();
  // Which thread gets a row is chance: each must have its memory now, not at a later step.
  for (DrawMemory& memory : draw_memory_) memory.Reserve(logits.cols());
  context_.pool.ParallelFor(logits.rows(), [&](size_t i, int thread) {
    const auto& [params, position] = batch.draws[i];
    if (params == nullptr) return;
    const std::span<const float> row(logits.row(i), logits.cols());
    batch.drawn[i] =
        AllFinite(row) ? ChooseToken(row, *params, position, draw_memory_[thread]) : -1;
  });
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<Model>> Model::Load(const std::string& dir,
                                                   const ModelOptions& wanted) {
  ASSIGN_OR_RETURN(ModelConfig config, LoadModelConfig(dir));
  ASSIGN_OR_RETURN(ModelOptions options, ResolveModelOptions(config, wanted));
  if (options.device == Device::kCuda) {
    return LoadCudaModel(dir, std::move(config), std::move(options));
  }
  ASSIGN_OR_RETURN(KernelSet kernels, SelectKernels(wanted.kernels));
  try {
    auto model =
        std::make_unique<LoadedModel>(std::move(config), std::move(options), std::move(kernels));
    RETURN_IF_ERROR(model->LoadFrom(dir));
    return model;
  } catch (const std::bad_alloc&) {
    return absl::ResourceExhaustedError(absl::StrCat(dir, ": not enough memory for the model"));
  }
}

}  // namespace switchyard
