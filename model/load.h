// model/load.h: what models of all devices do alike: what their options mean, which files they are
// read from, what a batch may be.
#pragma once

#include <memory>
#include <span>
#include <string>

#include "absl/status/statusor.h"
#include "common/compute_pool.h"
#include "model/model.h"
#include "model/safetensors.h"
#include "model/weight_source.h"
#include "model/weights.h"

namespace switchyard {

// Fills in what is 0 and checks the rest. kInvalidArgument names the option.
absl::StatusOr<ModelOptions> ResolveModelOptions(const ModelConfig& config, ModelOptions options);
absl::Status CheckPlacement(const ModelConfig& config, const Placement& placement, RankId rank);

struct OpenedModel {
  std::unique_ptr<Checkpoint> checkpoint;  // null with dummy weights; the source reads from it
  std::unique_ptr<WeightSource> source;
  std::string digest;  // of the files as they are now
};
absl::StatusOr<OpenedModel> OpenModel(const std::string& dir, const ModelConfig& config,
                                      bool dummy_weights);
// Single experts of the model that had `digest`, packed by `kernels`; what is borrowed outlives the
// source. Errors as OpenModel's; kDataLoss if the files have been replaced.
struct ExpertsFrom {
  std::string dir;
  const ModelConfig& config;
  bool dummy_weights = false;
  std::string digest;
  const KernelSet& kernels;
  LoadWeightsOptions load;
};
absl::StatusOr<std::unique_ptr<ExpertSource>> OpenExpertSource(ExpertsFrom from);
// Adds `missing` to `spare`, all or none.
absl::Status LoadExperts(ExpertsFrom from, std::span<const ExpertKey> missing, ComputePool& pool,
                         SpareExperts* spare);
// `kernels`: the path's name.
std::string NumericsId(const std::string& digest, const ModelConfig& config,
                       const ModelOptions& options, const std::string& kernels);

// Everything that Forward is given. kInvalidArgument names what cannot be.
absl::Status CheckForward(const ModelConfig& config, const ModelOptions& options,
                          const ForwardBatch& batch, const KvStorage& kv,
                          Matrix<const float> logits);

// A model on an NVIDIA device (model/cuda). kFailedPrecondition if the binary was built without it,
// or says why there is no device.
absl::StatusOr<std::unique_ptr<Model>> LoadCudaModel(const std::string& dir, ModelConfig config,
                                                     ModelOptions options);

}  // namespace switchyard
