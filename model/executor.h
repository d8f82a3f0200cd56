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
// sequence may be cut at any token. `rows`: of all sequences. Of each batch, rank `rank` of `ranks`
// that compute attention together owns a slice. `prompts`: of each sequence, at positions below
// which rows are expanded; or empty: none is.
void ShareRows(std::span<const AttentionSequence> sequences, std::span<const int32_t> prompts,
               size_t rows, int rank, int ranks, std::span<MicroBatch> batches);

// The last hidden states of the step's `rows`, ascending, on the first of the ranks that compute
// attention together; the others send it theirs, and get none. `exchange` is null for a rank alone.
struct LastHiddenRows {
  GrowingArray<float> packed, ordered;
  std::vector<int> owners;
  std::vector<size_t> counts, next;
};
absl::StatusOr<Matrix<float>> LastHidden(RowExchange* exchange, std::span<const MicroBatch> batches,
                                         std::span<const int32_t> rows, LastHiddenRows& memory);

}  // namespace switchyard
