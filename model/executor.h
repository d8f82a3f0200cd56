// model/executor.h: runs micro-batches through the layers of a model, stage by stage.
#pragma once

#include <functional>
#include <span>

#include "model/stages.h"

namespace switchyard {

class LayerObserver;

class Executor {
 public:
  // Borrowed; must outlive the executor.
  explicit Executor(const ModelWeights& weights) : weights_(weights) {}

  // batch.residual: embeddings in, last hidden state out. `observer` may be null. After an error
  // the batch's content is undefined, and KV of its positions is not to be read.
  absl::Status Run(StepContext& step, MicroBatch& batch, LayerObserver* observer) const;

 private:
  const ModelWeights& weights_;
};

}  // namespace switchyard
