// In the place of model/cuda where that is not built.
#include "model/load.h"

namespace switchyard {

absl::StatusOr<std::unique_ptr<Model>> LoadCudaModel(const std::string&, ModelConfig,
                                                     ModelOptions) {
  return absl::FailedPreconditionError(
      "device cuda: this binary was built without it; bazel build --config=cuda, where nvcc is");
}

}  // namespace switchyard
