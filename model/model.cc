#include "model/model.h"

#include <new>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "common/file.h"
#include "common/status_macros.h"
#include "model/executor.h"
#include "model/head_share.h"
#include "model/weight_source.h"
#include "model/weights.h"
#include "moe/loopback.h"

namespace switchyard {
namespace {

constexpr int kMaxBatchTokensDefault = 2048, kMaxBatchTokensMax = 1 << 20;
constexpr int kThreadsMax = 1024;
// Of the orders in docs/numerics.md that the rest of numerics_id does not name.
constexpr int kRulesVersion = 2;

absl::Status CheckPlacement(const ModelConfig& config, const Placement& p, RankId rank) {
  if (p.layers() == config.layers && p.experts() == config.gate.experts && rank.value() >= 0 &&
      rank.value() < p.ranks()) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      absl::StrCat("placement: ", p.layers(), " layers of ", p.experts(), " experts on ", p.ranks(),
                   " ranks for rank ", rank.value(), "; the model has ", config.layers,
                   " layers of ", config.gate.experts, " experts"));
}

class LoadedModel final : public Model {
 public:
  LoadedModel(ModelConfig config, ModelOptions options, KernelSet kernels)
      : config_(std::move(config)),
        options_(std::move(options)),
        kernels_(std::move(kernels)),
        context_(options_.threads),
        rope_(config_.MakeRopeTable(options_.max_model_len)),
        heads_(HeadsOf(config_, options_.tensor_rank, options_.tensor_ranks)),
        executor_(config_, weights_) {}

  absl::Status LoadFrom(const std::string& dir);

  const ModelConfig& config() const override { return config_; }
  const ModelOptions& options() const override { return options_; }
  const std::string& numerics_id() const override { return numerics_id_; }
  const std::vector<std::string>& notices() const override { return notices_; }
  absl::Status Rehost(std::shared_ptr<const Placement> placement, SpareExperts* spare) override;
  absl::StatusOr<std::unique_ptr<ExpertSource>> OpenExperts() const override;
  void UseDispatcher(Dispatcher* dispatcher) override { dispatcher_ = dispatcher; }
  void UseExchange(RowExchange* exchange) override { exchange_ = exchange; }
  absl::Status Forward(const ForwardBatch& batch, KvStorage& kv, LayerObserver* observer,
                       Matrix<float> logits) override;

 private:
  class Experts;
  LoadWeightsOptions WeightsOptions(HostedExperts hosted) const {
    return {.dtype = options_.dtype,
            .quantization = options_.quantization,
            .heads = heads_,
            .local_experts = std::move(hosted),
            .cache = cache_.get(),
            .progress = {}};
  }
  // `checkpoint` holds what the source reads from, if anything.
  absl::StatusOr<std::unique_ptr<WeightSource>> OpenSource(
      std::optional<Checkpoint>* checkpoint) const;
  // The files as they are now.
  absl::StatusOr<std::string> Digest(const std::optional<Checkpoint>& checkpoint) const;
  absl::Status LoadMissing(const HostedExperts& hosted, SpareExperts* spare);
  absl::Status MakeLoopback();
  absl::Status Validate(const ForwardBatch& batch, const KvStorage& kv,
                        Matrix<const float> logits) const;
  absl::Status ValidateSequence(const AttentionSequence& s, int32_t first_row,
                                const KvStorage& kv) const;
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
};

absl::Status LoadedModel::LoadFrom(const std::string& dir) {
  dir_ = dir;
  std::optional<Checkpoint> checkpoint;
  ASSIGN_OR_RETURN(const auto source, OpenSource(&checkpoint));
  std::vector<int32_t> all(config_.gate.experts);
  std::iota(all.begin(), all.end(), 0);
  const auto local = [&](int layer) -> std::span<const int32_t> {
    if (options_.placement == nullptr) return all;
    return options_.placement->Hosted(layer, options_.rank);
  };
  if (options_.placement == nullptr) RETURN_IF_ERROR(MakeLoopback());
  ASSIGN_OR_RETURN(digest_, Digest(checkpoint));
  const bool mla = config_.attention == ModelConfig::Attention::kMla;
  numerics_id_ = absl::StrCat(
      digest_, options_.dummy_weights ? "-dummy:" : ":", std::string(Name(options_.dtype)),
      options_.quantization ? absl::StrCat("-", std::string(Name(*options_.quantization))) : "",
      ":", kernels_.name, mla ? ":absorbed" : ":gqa", ":", kRulesVersion);
  if (!options_.weights_cache.empty()) {
    cache_ = std::make_unique<PackedCache>(options_.weights_cache, numerics_id_);
  }
  LoadWeightsOptions load = WeightsOptions(local);
  load.progress = options_.progress;
  ASSIGN_OR_RETURN(weights_, LoadWeights(*source, config_, kernels_, context_.pool, load));
  notices_ = config_.notices;
  for (std::string& notice : source->notices()) notices_.push_back(std::move(notice));
  if (cache_ != nullptr) notices_.push_back(cache_->Report());
  return absl::OkStatus();
}

absl::StatusOr<std::string> LoadedModel::Digest(const std::optional<Checkpoint>& checkpoint) const {
  ASSIGN_OR_RETURN(const MappedFile config_file, MappedFile::Open(dir_ + "/config.json"));
  const auto text = config_file.bytes();
  return ModelDigest({reinterpret_cast<const char*>(text.data()), text.size()},
                     checkpoint ? &*checkpoint : nullptr);
}

absl::StatusOr<std::unique_ptr<WeightSource>> LoadedModel::OpenSource(
    std::optional<Checkpoint>* checkpoint) const {
  if (options_.dummy_weights) return MakeDummySource(config_);
  ASSIGN_OR_RETURN(*checkpoint, Checkpoint::Open(dir_));
  return MakeCheckpointSource(**checkpoint, config_);
}

class LoadedModel::Experts final : public ExpertSource {
 public:
  explicit Experts(const LoadedModel& model)
      : model_(model), options_(model.WeightsOptions(nullptr)) {}
  absl::Status Open() {
    ASSIGN_OR_RETURN(source_, model_.OpenSource(&checkpoint_));
    ASSIGN_OR_RETURN(const std::string digest, model_.Digest(checkpoint_));
    if (digest == model_.digest_) return absl::OkStatus();
    return absl::DataLossError(absl::StrCat(model_.dir_, ": the model has been replaced (", digest,
                                            ") since it was loaded (", model_.digest_, ")"));
  }
  absl::StatusOr<PackedExpert> Load(const ExpertKey& key) const override {
    try {
      return LoadExpert(*source_, model_.config_, model_.kernels_, options_, key);
    } catch (const std::bad_alloc&) {
      return absl::ResourceExhaustedError(
          absl::StrCat("not enough memory for expert ", key.expert, " of layer ", key.layer));
    }
  }

 private:
  const LoadedModel& model_;
  const LoadWeightsOptions options_;
  std::optional<Checkpoint> checkpoint_;
  std::unique_ptr<WeightSource> source_;
};

absl::StatusOr<std::unique_ptr<ExpertSource>> LoadedModel::OpenExperts() const {
  auto experts = std::make_unique<Experts>(*this);
  RETURN_IF_ERROR(experts->Open());
  return experts;
}

absl::Status LoadedModel::LoadMissing(const HostedExperts& hosted, SpareExperts* spare) {
  const std::vector<ExpertKey> missing = MissingExperts(weights_, hosted, *spare);
  if (missing.empty()) return absl::OkStatus();
  ASSIGN_OR_RETURN(const auto source, OpenExperts());
  std::vector<absl::StatusOr<PackedExpert>> loaded(missing.size());
  context_.pool.ParallelFor(missing.size(),
                            [&](size_t i, int) { loaded[i] = source->Load(missing[i]); });
  for (size_t i = 0; i < missing.size(); ++i) {
    RETURN_IF_ERROR(loaded[i].status());
    spare->emplace(missing[i], *std::move(loaded[i]));
  }
  return absl::OkStatus();
}

absl::Status LoadedModel::Rehost(std::shared_ptr<const Placement> placement, SpareExperts* spare) {
  if (options_.placement == nullptr) {
    return absl::FailedPreconditionError("a model without a placement hosts all experts");
  }
  RETURN_IF_ERROR(CheckPlacement(config_, *placement, options_.rank));
  const HostedExperts hosted = [&](int layer) { return placement->Hosted(layer, options_.rank); };
  RETURN_IF_ERROR(LoadMissing(hosted, spare));
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
                                                          .pool = &context_.pool}));
  dispatcher_ = loopback_.get();
  return absl::OkStatus();
}

absl::Status LoadedModel::ValidateSequence(const AttentionSequence& s, int32_t first_row,
                                           const KvStorage& kv) const {
  if (s.first_row != first_row || s.count < 1 || s.first_position < 0 ||
      s.first_position > options_.max_model_len - s.count) {
    return absl::InvalidArgumentError(absl::StrCat(
        "sequence of ", s.count, " rows from row ", s.first_row, " at position ", s.first_position,
        ": wanted row ", first_row, " and positions below ", options_.max_model_len));
  }
  const size_t blocks = kv.layout().BlocksFor(s.first_position + s.count);
  if (s.blocks.size() < blocks) {
    return absl::InvalidArgumentError(absl::StrCat("sequence at row ", s.first_row, ": ",
                                                   s.blocks.size(), " blocks, wanted ", blocks));
  }
  for (const int32_t b : s.blocks.first(blocks)) {
    if (b < 0 || b >= kv.blocks()) {
      return absl::InvalidArgumentError(
          absl::StrCat("sequence at row ", s.first_row, ": block ", b, " of ", kv.blocks()));
    }
  }
  return absl::OkStatus();
}

absl::Status LoadedModel::Validate(const ForwardBatch& batch, const KvStorage& kv,
                                   Matrix<const float> logits) const {
  const auto refuse = [](auto... what) {
    return absl::InvalidArgumentError(absl::StrCat(what...));
  };
  const size_t rows = batch.tokens.size();
  if (rows > static_cast<size_t>(options_.max_batch_tokens)) {
    return refuse("batch of ", rows, " rows, at most ", options_.max_batch_tokens);
  }
  for (const int32_t token : batch.tokens) {
    if (token < 0 || token >= config_.vocab_size) {
      return refuse("token ", token, " is not in the vocabulary of ", config_.vocab_size);
    }
  }
  const KvLayout wanted = config_.KvLayoutFor(options_.dtype, kv.layout().block_tokens);
  if (kv.layout() != wanted) {
    return refuse("KV layout ", kv.layout().LayoutId(), ", wanted ", wanted.LayoutId());
  }
  int32_t next_row = 0;
  for (const AttentionSequence& s : batch.sequences) {
    RETURN_IF_ERROR(ValidateSequence(s, next_row, kv));
    next_row += s.count;
    if (static_cast<size_t>(next_row) > rows) break;
  }
  if (static_cast<size_t>(next_row) != rows) {
    return refuse("sequences cover ", next_row, " rows of ", rows);
  }
  int32_t last = -1;
  for (const int32_t r : batch.logit_rows) {
    if (r <= last || static_cast<size_t>(r) >= rows) return refuse("logit row ", r, " of ", rows);
    last = r;
  }
  const size_t wanted_rows = options_.tensor_rank == 0 ? batch.logit_rows.size() : 0;
  if (logits.rows() != wanted_rows ||
      (!logits.empty() && logits.cols() != static_cast<size_t>(config_.vocab_size))) {
    return refuse("logits [", logits.rows(), ", ", logits.cols(), "], wanted [", wanted_rows, ", ",
                  config_.vocab_size, "]");
  }
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
  ShareRows(batch.sequences, batch.tokens.size(), options_.tensor_rank, options_.tensor_ranks,
            batches);
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
  RETURN_IF_ERROR(Validate(batch, kv, logits));
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
  return absl::OkStatus();
}

absl::Status CheckRange(const char* name, int value, int high) {
  if (value >= 1 && value <= high) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(name, ": ", value, "; supported: 1 to ", high));
}

}  // namespace

absl::StatusOr<std::unique_ptr<Model>> Model::Load(const std::string& dir,
                                                   const ModelOptions& wanted) {
  ASSIGN_OR_RETURN(ModelConfig config, LoadModelConfig(dir));
  ASSIGN_OR_RETURN(KernelSet kernels, SelectKernels(wanted.kernels));
  ModelOptions options = wanted;
  if (options.max_model_len == 0) options.max_model_len = config.max_position_embeddings;
  if (options.max_batch_tokens == 0) options.max_batch_tokens = kMaxBatchTokensDefault;
  RETURN_IF_ERROR(CheckRange("threads", options.threads, kThreadsMax));
  RETURN_IF_ERROR(CheckRange("max_batch_tokens", options.max_batch_tokens, kMaxBatchTokensMax));
  RETURN_IF_ERROR(
      CheckRange("max_model_len", options.max_model_len, config.max_position_embeddings));
  if (options.quantization &&
      (options.dtype != DType::kBfloat16 || !IsInteger(*options.quantization))) {
    return absl::InvalidArgumentError(
        absl::StrCat("quantization: ", std::string(Name(*options.quantization)),
                     "; supported: int8 and int4, with dtype bfloat16"));
  }
  RETURN_IF_ERROR(CheckTensorRanks(config, options.tensor_ranks));
  if (options.tensor_rank < 0 || options.tensor_rank >= options.tensor_ranks) {
    return absl::InvalidArgumentError(
        absl::StrCat("tensor_rank: ", options.tensor_rank, " of ", options.tensor_ranks, " ranks"));
  }
  if (options.placement != nullptr) {
    RETURN_IF_ERROR(CheckPlacement(config, *options.placement, options.rank));
  }
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
