// model/executor.h: runs micro-batches through the layers of a model, stage by stage.
#pragma once

#include <functional>
#include <span>
#include <vector>

#include "model/stages.h"

namespace switchyard {

class LayerObserver;

class Executor {
 public:
  // Both are borrowed and must outlive the executor; weights may change between runs.
  Executor(const ModelConfig& config, const ModelWeights& weights);

  // Takes each of `batches` through all layers: residual holds embeddings before, the last hidden
  // state after. With two, each computes while the other's rows travel:
  //
  //   arithmetic  attention A │ attention B │ experts A │ experts B │ attention A, next layer │ …
  //   wire                    dispatch A ─── dispatch B ─ combine A ─ combine B ───────────────
  //
  // In every layer a batch comes after those before it in the span: its rows may attend to theirs.
  // `observer` may be null. After an error the batches' content is undefined, and KV of their
  // positions is not to be read.
  absl::Status Run(StepContext& step, std::span<MicroBatch> batches, LayerObserver* observer) const;

 private:
  struct LayerStage {
    int layer;
    Stage stage;
  };
  const ModelWeights& weights_;
  // The stages of all layers in order, cut behind each send: what follows it waits for the wire.
  std::vector<std::vector<LayerStage>> segments_;
};

// Gives each of `batches` its part of the rows of `sequences`, in order, about as many to each; a
// sequence may be cut at any token. residual [T, H] of all rows, whose parts the batches borrow.
void ShareRows(std::span<const AttentionSequence> sequences, Matrix<float> residual,
               std::span<MicroBatch> batches);

}  // namespace switchyard
