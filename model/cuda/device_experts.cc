// Which experts a model on a device hosts, and where their weights come from.
#include "common/status_macros.h"
#include "model/cuda/device_model.h"
#include "model/hosted_experts.h"

namespace switchyard::cuda {

LoadWeightsOptions DeviceModel::WeightsOptions(HostedExperts hosted) const {
  return {.dtype = options_.dtype,
          .quantization = options_.quantization,
          .heads = HeadsOf(config_, 0, 1),
          .local_experts = std::move(hosted),
          .cache = cache_.get(),
          .progress = {}};
}

ExpertsFrom DeviceModel::Source() const {
  return {.dir = dir_,
          .config = config_,
          .dummy_weights = options_.dummy_weights,
          .digest = digest_,
          .kernels = packers_,
          .load = WeightsOptions(nullptr)};
}

absl::StatusOr<std::unique_ptr<ExpertSource>> DeviceModel::OpenExperts() const {
  return OpenExpertSource(Source());
}

// A layer at a time, so that the device has at most one of them twice.
absl::Status DeviceModel::Host(const Placement& placement, SpareExperts* spare) {
  const HostedExperts wanted = [&](int l) { return placement.Hosted(l, options_.rank); };
  const HostedExperts there = [&](int l) -> std::span<const int32_t> {
    return weights_.layers[l].experts.logical;
  };
  ComputePool pool(options_.threads);
  RETURN_IF_ERROR(
      LoadExperts(Source(), MissingExperts(config_.layers, there, wanted, *spare), pool, spare));
  WeightUploader uploader(&weights_, compute_);
  for (int l = 0; l < config_.layers; ++l) {
    if (config_.layer_is_moe[l]) RETURN_IF_ERROR(uploader.Rehost(l, wanted(l), spare));
  }
  return absl::OkStatus();
}

absl::Status DeviceModel::Rehost(std::shared_ptr<const Placement> placement, SpareExperts* spare) {
  if (options_.placement == nullptr) {
    return absl::FailedPreconditionError("a model without a placement hosts all experts");
  }
  RETURN_IF_ERROR(CheckPlacement(config_, *placement, options_.rank));
  RETURN_IF_ERROR(UseDevice(options_.device_index));
  const absl::Status done = Host(*placement, spare);
  if (!done.ok()) {
    RETURN_IF_ERROR(Host(*options_.placement, spare));
    return done;
  }
  options_.placement = std::move(placement);
  dispatcher_ = nullptr;  // it speaks of the old placement
  return absl::OkStatus();
}

}  // namespace switchyard::cuda
