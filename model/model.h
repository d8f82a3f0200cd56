// model/model.h: a checkpoint that computes. Owns this rank's weights; borrows the KV memory.
// Owned by the engine thread.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/attention.h"
#include "kernels/gemm.h"
#include "kernels/kernel_set.h"
#include "kernels/sample.h"
#include "kvcache/layout.h"
#include "model/config.h"
#include "model/experts.h"
#include "moe/dispatch.h"
#include "moe/placement.h"
#include "moe/row_exchange.h"

namespace switchyard {

// Where a model computes.
enum class Device { kCpu, kCuda };

// How tokens travel to experts (moe/row_codec.h).
enum class EpPayload {
  kAuto,   // as 8-bit integers where experts make those of them anyway, so that no bit changes
  kDtype,  // as they are
  kInt8,   // as 8-bit integers; those that stay on their rank are rounded alike
};

// How MLA is computed. Its two forms round differently (docs/numerics.md), so both are of a
// cluster.
enum class MlaForms {
  kAbsorbed,  // in latent space, for every token
  kAuto,      // prompt tokens with expanded keys and values, generated ones in latent space
};

struct ModelOptions {
  Device device = Device::kCpu;
  int device_index = 0;  // of the machine's devices of that kind
  std::string kernels = "auto";
  DType dtype = DType::kBfloat16;
  // --quantization: projections and experts as integers, kInt8 or kInt4, only with kBfloat16. Gate,
  // norms, embeddings, head and what MLA absorbs stay as they are.
  std::optional<WeightFormat> quantization;
  MlaForms mla = MlaForms::kAbsorbed;  // kAuto: not on devices; without effect on other attention
  EpPayload ep_payload = EpPayload::kAuto;  // kInt8: only with kBfloat16
  // Expert outputs return summed by rank (EpDispatcher::Options::reduced): with a placement bits
  // depend on it.
  bool reduced_combine = false;
  int threads = 1;
  int max_model_len = 0;       // positions of the rope table; 0: the model's own limit
  int max_batch_tokens = 0;    // T of one Forward at most; 0: 2048
  bool dummy_weights = false;  // --load-format dummy: from a fixed seed by config.json alone
  // --weights-cache: a folder where packed weights are kept for the next start; empty: none.
  std::string weights_cache;
  // Expert parallelism: the experts of which ranks, with a row per layer of the model, and which
  // rank this is. Only its experts are loaded. Null: this rank has all of them.
  std::shared_ptr<const Placement> placement = nullptr;
  RankId rank = RankId(0);
  // Tensor parallelism of attention (model/tensor_parallel.h): this rank has the heads of rank
  // tensor_rank of tensor_ranks.
  int tensor_rank = 0, tensor_ranks = 1;
  // Called while weights load: bytes done, bytes in all. May be empty.
  std::function<void(size_t done, size_t total)> progress;

  // Whether tokens travel as 8-bit integers, and whether experts get other numbers for it.
  bool int8_tokens() const {
    return ep_payload == EpPayload::kInt8 ||
           (ep_payload == EpPayload::kAuto && quantization && device == Device::kCpu);
  }
  bool rounds_tokens() const { return int8_tokens() && !quantization; }
  // Of a loaded model's: whether a token gives other bits in a prompt than where it was generated.
  bool expands_prompts() const { return mla == MlaForms::kAuto; }
};

// A row of logits of which only the token is wanted that is drawn from it as it is.
struct Draw {
  const SamplingParams* params = nullptr;  // null: the logits themselves are wanted
  uint64_t position = 0;                   // of the token that is drawn
};

// One step's rows. Rows of a sequence are consecutive and in order of position; a sequence may
// appear once.
struct ForwardBatch {
  std::span<const int32_t> tokens;               // [T] each in [0, vocab)
  std::span<const AttentionSequence> sequences;  // cover [0, T); their blocks are allocated
  std::span<const int32_t> logit_rows;           // ascending rows whose logits are wanted
  // Both [logit_rows], or empty: of rows with a Draw that the model Draws, the token instead of the
  // logits, whose row is not to be read; -1 where a logit is not finite.
  std::span<const Draw> draws = {};
  std::span<TokenId> drawn = {};
  // [sequences] where the model expands_prompts, else not looked at: the length of each one's
  // prompt. Rows at positions below it are of prompt tokens, the others of generated ones.
  std::span<const int32_t> prompts = {};
};

// Told when a layer's KV of every row of the batch is in the cache; the bytes of those positions do
// not change any more. Called on the engine thread between two layers: must not block.
class LayerObserver {
 public:
  virtual ~LayerObserver() = default;
  virtual void OnLayerWritten(int layer) = 0;
  // Whether OnLayerWritten reads the bytes of sequence `index` of the batch: where they lie in a
  // device's memory they are fetched for it.
  virtual bool Reads(size_t index) const {
    static_cast<void>(index);
    return true;
  }
};

class Model {
 public:
  virtual ~Model() = default;

  // Loads DIR (config.json, model.safetensors or its shards). Errors name file, tensor, what was
  // wanted and found.
  static absl::StatusOr<std::unique_ptr<Model>> Load(const std::string& dir,
                                                     const ModelOptions& options);

  virtual const ModelConfig& config() const = 0;
  virtual const ModelOptions& options() const = 0;  // resolved
  // Everything that decides a request's bits besides the request: "model digest:dtype:kernels:mla
  // mode".
  virtual const std::string& numerics_id() const = 0;
  // What loading found and does not use, one sentence each, for the log.
  virtual const std::vector<std::string>& notices() const = 0;

  // Who carries rows to the experts from the next Forward on; borrowed. Until it is called, a model
  // with a placement cannot compute; one without has all its experts and needs nobody.
  virtual void UseDispatcher(Dispatcher* dispatcher) = 0;

  // Who carries rows to the ranks that have the other heads of attention; borrowed. Only with
  // tensor parallelism, and then needed; null: nobody.
  virtual void UseExchange(RowExchange*) {}

  // Hosts what `placement` says from the next Forward on. Experts that this rank lacks are taken
  // from `spare`, or loaded where they are not there; those that it need not have any more are left
  // in `spare`, for whoever has the time to free them. Only for a model with a placement, of the
  // same ranks. The dispatcher must be set anew. Errors as Load's; then the model hosts what it did
  // before.
  virtual absl::Status Rehost(std::shared_ptr<const Placement> placement, SpareExperts* spare) = 0;

  // A cache for Forward. Errors: kInvalidArgument for a layout that is none; kResourceExhausted.
  virtual absl::StatusOr<KvStorage> MakeKv(const KvLayout& layout, int blocks) {
    return KvStorage::Create(layout, blocks);
  }

  // Whether Forward takes a Draw with these.
  virtual bool Draws(const SamplingParams&) const { return false; }

  // Where this model's experts come from. Thread-safe; the model must outlive the source.
  virtual absl::StatusOr<std::unique_ptr<ExpertSource>> OpenExperts() const = 0;

  // Computes the batch: writes its KV, fills logits [logit_rows, V]. `kv` has this model's layout;
  // observer may be null. T in [0, max_batch_tokens]; with a placement all ranks call, those
  // without rows too. The ranks of a tensor-parallel group give the same batch, and all but the
  // first no logits to fill. Errors: kUnavailable if an expert-parallel peer is lost (nothing of
  // this step counts; running it again is safe).
  virtual absl::Status Forward(const ForwardBatch& batch, KvStorage& kv, LayerObserver* observer,
                               Matrix<float> logits) = 0;
};

}  // namespace switchyard
