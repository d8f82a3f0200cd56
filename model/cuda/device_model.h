// model/cuda/device_model.h: a model that computes on one NVIDIA device behind the interface of all
// models (model/model.h), so that engine, hand-off and tools are those of the host (docs/cuda.md).
// Owned by the engine thread.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "common/cuda/device.h"
#include "model/cuda/device_kv.h"
#include "model/cuda/device_weights.h"
#include "model/cuda/layers.h"
#include "model/cuda/ranked_experts.h"
#include "model/load.h"

namespace switchyard::cuda {

class DeviceModel final : public Model {
 public:
  // Errors: as Model::Load; kFailedPrecondition without a device; kUnimplemented for what is not
  // built on one (docs/cuda.md); kResourceExhausted says what did not fit.
  static absl::StatusOr<std::unique_ptr<DeviceModel>> Load(const std::string& dir,
                                                           ModelConfig config,
                                                           ModelOptions options);

  const ModelConfig& config() const override { return config_; }
  const ModelOptions& options() const override { return options_; }
  const std::string& numerics_id() const override { return numerics_id_; }
  const std::vector<std::string>& notices() const override { return notices_; }
  void UseDispatcher(Dispatcher* dispatcher) override { dispatcher_ = dispatcher; }
  absl::Status Rehost(std::shared_ptr<const Placement> placement, SpareExperts* spare) override;
  absl::StatusOr<std::unique_ptr<ExpertSource>> OpenExperts() const override;
  absl::StatusOr<KvStorage> MakeKv(const KvLayout& layout, int blocks) override;
  bool Draws(const SamplingParams&) const override { return true; }
  absl::Status Forward(const ForwardBatch& batch, KvStorage& kv, LayerObserver* observer,
                       Matrix<float> logits) override;

 private:
  DeviceModel(ModelConfig config, ModelOptions options, GemmPath path);
  absl::Status LoadFrom(const std::string& dir, const std::string& numerics_path);
  absl::Status Allocate();
  LoadWeightsOptions WeightsOptions(HostedExperts hosted) const;
  // Makes the layers host what `placement` says. An error may leave some that do and some that do
  // not.
  absl::Status Host(const Placement& placement, SpareExperts* spare);
  // Of single experts.
  ExpertsFrom Source() const;

  // Memory that recorded graphs refer to: if it has to grow they are forgotten.
  template <Memory kind>
  absl::Status Grow(size_t bytes, Buffer<kind>* buffer);
  // Blocks of `batch` that other ranks wrote go to the device.
  absl::Status FetchFromHost(const ForwardBatch& batch, DeviceKv& kv);
  // Room for a step, and its arrays on the device: those of the whole, and of each micro-batch.
  absl::StatusOr<LayerStep> Prepare(const ForwardBatch& batch, const DeviceKv& kv);
  absl::Status ReserveArrays(int tables);
  // The arrays of `batch`, as the step's `set`.
  absl::StatusOr<LayerStep> Upload(const ForwardBatch& batch, const DeviceKv& kv, int set);
  absl::Status AddPart(int part, int rows);

  // Whether a step without downloads is recorded once and replayed.
  bool Records(const StepShape& exact) const {
    return CanCapture() && dispatcher_ == nullptr && IsDecode(exact);
  }
  // What a step launches: layers, logits, draws.
  absl::Status Compute(const LayerStep& step, DeviceKv& kv, LayerObserver* observer);
  absl::Status Layer(int layer, DeviceKv& kv);
  absl::Status Download(int layer, DeviceKv& kv);
  bool Ranked(int layer) const { return dispatcher_ != nullptr && config_.layer_is_moe[layer]; }
  absl::Status Finish(const LayerStep& step);
  absl::Status Replay(const LayerStep& step, DeviceKv& kv, LayerObserver* observer);
  // Tells `observer` of a layer, once the bytes that it wants are there.
  absl::Status Tell(int layer, LayerObserver* observer);
  // Waits for the step. Only what was drawn, and the logits that are asked for, come to the host.
  absl::Status Collect(const ForwardBatch& batch, int drawn_rows, Matrix<float> logits);

  const ModelConfig config_;
  ModelOptions options_;  // but for the placement, as given
  const GemmPath path_;
  const KernelSet packers_;
  std::string dir_, digest_, numerics_id_;
  std::unique_ptr<PackedCache> cache_;
  std::vector<std::string> notices_;
  Dispatcher* dispatcher_ = nullptr;  // null: all experts are here

  OwnedStream compute_, copies_;
  std::vector<Event> written_,
      copied_;  // [layers]: KV on the device; on the host
  Event uploaded_;
  DeviceWeights weights_;
  DeviceArena memory_;
  // A step's micro-batches, if it has two; the first has room for a whole step, which is its own
  // then. The second's memory is taken when it is first wanted.
  struct Part {
    Workspace workspace;
    std::unique_ptr<DeviceLayers> layers;
    LayerStep step;
    const int32_t* positions = nullptr;  // on the host
  };
  Part parts_[RankedExperts::kParts];
  int micro_batches_ = 1;  // of this step
  RankedExperts experts_;  // with a placement

  StepLimits limits_;                   // of each set of arrays
  PinnedBuffer host_arrays_, results_;  // sets of arrays; tokens and log-probabilities
  DeviceBuffer device_arrays_, attention_, logits_, drawn_;
  std::vector<BlockRun> uploads_, downloads_;
  std::vector<BlockTail> tails_;         // of the sequences that are downloaded
  std::map<StepShape, Graph> graphs_;    // decode steps: recorded, or met once (null)
  const DeviceKv* graphs_kv_ = nullptr;  // the cache that they refer to
};

}  // namespace switchyard::cuda
