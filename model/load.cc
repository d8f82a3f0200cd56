#include "model/load.h"

#include <new>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/file.h"
#include "common/status_macros.h"
#include "model/head_share.h"

namespace switchyard {
namespace {

constexpr int kMaxBatchTokensDefault = 2048, kMaxBatchTokensMax = 1 << 20;
constexpr int kThreadsMax = 1024;
// Of the orders in docs/numerics.md that the rest of numerics_id does not name.
constexpr int kRulesVersion = 2;

absl::Status CheckRange(const char* name, int value, int high) {
  if (value >= 1 && value <= high) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(name, ": ", value, "; supported: 1 to ", high));
}

absl::Status CheckSequence(const ModelOptions& options, const AttentionSequence& s,
                           int32_t first_row, const KvStorage& kv) {
  if (s.first_row != first_row || s.count < 1 || s.first_position < 0 ||
      s.first_position > options.max_model_len - s.count) {
    return absl::InvalidArgumentError(absl::StrCat(
        "sequence of ", s.count, " rows from row ", s.first_row, " at position ", s.first_position,
        ": wanted row ", first_row, " and positions below ", options.max_model_len));
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

class CheckpointExperts final : public ExpertSource {
 public:
  explicit CheckpointExperts(ExpertsFrom from) : from_(std::move(from)) {}
  absl::Status Open() {
    ASSIGN_OR_RETURN(opened_, OpenModel(from_.dir, from_.config, from_.dummy_weights));
    if (opened_.digest == from_.digest) return absl::OkStatus();
    return absl::DataLossError(absl::StrCat(from_.dir, ": the model has been replaced (",
                                            opened_.digest, ") since it was loaded (", from_.digest,
                                            ")"));
  }
  absl::StatusOr<PackedExpert> Load(const ExpertKey& key) const override {
    try {
      return LoadExpert(*opened_.source, from_.config, from_.kernels, from_.load, key);
    } catch (const std::bad_alloc&) {
      return absl::ResourceExhaustedError(
          absl::StrCat("not enough memory for expert ", key.expert, " of layer ", key.layer));
    }
  }

 private:
  const ExpertsFrom from_;
  OpenedModel opened_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<ExpertSource>> OpenExpertSource(ExpertsFrom from) {
  auto experts = std::make_unique<CheckpointExperts>(std::move(from));
  RETURN_IF_ERROR(experts->Open());
  return experts;
}

absl::Status LoadExperts(ExpertsFrom from, std::span<const ExpertKey> missing, ComputePool& pool,
                         SpareExperts* spare) {
  if (missing.empty()) return absl::OkStatus();
  ASSIGN_OR_RETURN(const auto source, OpenExpertSource(std::move(from)));
  std::vector<absl::StatusOr<PackedExpert>> loaded(missing.size());
  pool.ParallelFor(missing.size(), [&](size_t i, int) { loaded[i] = source->Load(missing[i]); });
  for (const auto& one : loaded) RETURN_IF_ERROR(one.status());
  for (size_t i = 0; i < missing.size(); ++i) spare->emplace(missing[i], *std::move(loaded[i]));
  return absl::OkStatus();
}

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

absl::StatusOr<ModelOptions> ResolveModelOptions(const ModelConfig& config, ModelOptions options) {
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
  if (config.attention != ModelConfig::Attention::kMla) options.mla = MlaForms::kAbsorbed;
  if (options.expands_prompts() && options.device != Device::kCpu) {
    return absl::InvalidArgumentError("mla: auto; devices compute only absorbed");
  }
  if (options.ep_payload == EpPayload::kInt8 && options.dtype != DType::kBfloat16) {
    return absl::InvalidArgumentError("ep-payload: int8; supported only with dtype bfloat16");
  }
  RETURN_IF_ERROR(CheckTensorRanks(config, options.tensor_ranks));
  if (options.tensor_rank < 0 || options.tensor_rank >= options.tensor_ranks) {
    return absl::InvalidArgumentError(
        absl::StrCat("tensor_rank: ", options.tensor_rank, " of ", options.tensor_ranks, " ranks"));
  }
  if (options.placement != nullptr) {
    RETURN_IF_ERROR(CheckPlacement(config, *options.placement, options.rank));
  }
  return options;
}

absl::StatusOr<OpenedModel> OpenModel(const std::string& dir, const ModelConfig& config,
                                      bool dummy_weights) {
  OpenedModel opened;
  if (dummy_weights) {
    opened.source = MakeDummySource(config);
  } else {
    ASSIGN_OR_RETURN(Checkpoint checkpoint, Checkpoint::Open(dir));
    opened.checkpoint = std::make_unique<Checkpoint>(std::move(checkpoint));
    opened.source = MakeCheckpointSource(*opened.checkpoint, config);
  }
  ASSIGN_OR_RETURN(const MappedFile config_file, MappedFile::Open(dir + "/config.json"));
  const auto text = config_file.bytes();
  opened.digest = ModelDigest({reinterpret_cast<const char*>(text.data()), text.size()},
                              opened.checkpoint.get());
  return opened;
}

std::string NumericsId(const std::string& digest, const ModelConfig& config,
                       const ModelOptions& options, const std::string& kernels) {
  const bool mla = config.attention == ModelConfig::Attention::kMla;
  return absl::StrCat(
      digest, options.dummy_weights ? "-dummy:" : ":", std::string(Name(options.dtype)),
      options.quantization ? absl::StrCat("-", std::string(Name(*options.quantization))) : "",
      options.rounds_tokens() ? "-int8_tokens" : "", options.reduced_combine ? "-reduced" : "", ":",
      kernels,
      !mla                        ? ":gqa"
      : options.expands_prompts() ? ":expanded_prompts"
                                  : ":absorbed",
      ":", kRulesVersion);
}

absl::Status CheckForward(const ModelConfig& config, const ModelOptions& options,
                          const ForwardBatch& batch, const KvStorage& kv,
                          Matrix<const float> logits) {
  const auto refuse = [](auto... what) {
    return absl::InvalidArgumentError(absl::StrCat(what...));
  };
  const size_t rows = batch.tokens.size();
  if (rows > static_cast<size_t>(options.max_batch_tokens)) {
    return refuse("batch of ", rows, " rows, at most ", options.max_batch_tokens);
  }
  for (const int32_t token : batch.tokens) {
    if (token < 0 || token >= config.vocab_size) {
      return refuse("token ", token, " is not in the vocabulary of ", config.vocab_size);
    }
  }
  const KvLayout wanted = config.KvLayoutFor(options.dtype, kv.layout().block_tokens);
  if (kv.layout() != wanted) {
    return refuse("KV layout ", kv.layout().LayoutId(), ", wanted ", wanted.LayoutId());
  }
  int32_t next_row = 0;
  for (const AttentionSequence& s : batch.sequences) {
    RETURN_IF_ERROR(CheckSequence(options, s, next_row, kv));
    next_row += s.count;
    if (static_cast<size_t>(next_row) > rows) break;
  }
  if (static_cast<size_t>(next_row) != rows) {
    return refuse("sequences cover ", next_row, " rows of ", rows);
  }
  if (options.expands_prompts() && batch.prompts.size() != batch.sequences.size()) {
    return refuse("lengths of ", batch.prompts.size(), " prompts for ", batch.sequences.size(),
                  " sequences");
  }
  int32_t last = -1;
  for (const int32_t r : batch.logit_rows) {
    if (r <= last || static_cast<size_t>(r) >= rows) return refuse("logit row ", r, " of ", rows);
    last = r;
  }
  if (!batch.draws.empty() && (batch.draws.size() != batch.logit_rows.size() ||
                               batch.drawn.size() != batch.logit_rows.size())) {
    return refuse(batch.draws.size(), " draws and room for ", batch.drawn.size(), " for ",
                  batch.logit_rows.size(), " rows of logits");
  }
  const size_t wanted_rows = options.tensor_rank == 0 ? batch.logit_rows.size() : 0;
  if (logits.rows() != wanted_rows ||
      (!logits.empty() && logits.cols() != static_cast<size_t>(config.vocab_size))) {
    return refuse("logits [", logits.rows(), ", ", logits.cols(), "], wanted [", wanted_rows, ", ",
                  config.vocab_size, "]");
  }
  return absl::OkStatus();
}

}  // namespace switchyard
