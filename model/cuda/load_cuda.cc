#include "model/cuda/device_model.h"

namespace switchyard {

absl::StatusOr<std::unique_ptr<Model>> LoadCudaModel(const std::string& dir, ModelConfig config,
                                                     ModelOptions options) {
  return cuda::DeviceModel::Load(dir, std::move(config), std::move(options));
}

}  // namespace switchyard
