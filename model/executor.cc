#include "model/executor.h"

#include "common/status_macros.h"
#include "model/model.h"

namespace switchyard {

absl::Status Executor::Run(StepContext& step, MicroBatch& batch, LayerObserver* observer) const {
  for (int l = 0; l < step.config.layers; ++l) {
    for (const Stage stage : StagesOf(step.config.layer_is_moe[l])) {
      // A rank without rows still serves its experts to the others.
      if (batch.rows() == 0 && !IsCollective(stage)) continue;
      RETURN_IF_ERROR(RunStage(stage, step, l, weights_.layers[l], batch));
      // Told as early as the bytes are final: a hand-off overlaps with this layer's experts.
      if (stage == Stage::kAttention && observer != nullptr) observer->OnLayerWritten(l);
    }
  }
  return absl::OkStatus();
}

}  // namespace switchyard
