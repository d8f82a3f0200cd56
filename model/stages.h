// model/stages.h: a layer as a list of stages, each a function of one micro-batch. Between two
// stages another micro-batch may run its own: send and receive are apart so that one's arithmetic
// hides the other's wire.
//
//   MoE layer:   attention ─► dispatch send ─► receive ─► experts ─► combine send ─► receive
//   dense layer: attention ─► dense FFN
#pragma once

#include <span>

#include "absl/status/status.h"
#include "kernels/kernel_set.h"
#include "kernels/rope.h"
#include "kvcache/layout.h"
#include "model/config.h"
#include "model/head_share.h"
#include "model/micro_batch.h"
#include "model/weights.h"
#include "moe/dispatch.h"
#include "moe/row_exchange.h"

namespace switchyard {

enum class Stage {
  kAttention,  // writes this layer's KV of every row
  kDenseFfn,
  kDispatchSend,  // gate, send, shared expert
  kDispatchReceive,
  kExperts,
  kCombineSend,
  kCombineReceive,
};

// In order.
std::span<const Stage> StagesOf(bool is_moe);

// All ranks of an expert-parallel group run these, each with whatever rows it has. Attention is for
// those ranks of a tensor-parallel group whose batch has rows.
constexpr bool IsCollective(Stage stage) {
  return stage != Stage::kAttention && stage != Stage::kDenseFfn;
}

// What all layers and micro-batches share, borrowed for one step.
struct StepContext {
  const ModelConfig& config;
  const KernelSet& kernels;
  KernelContext& kernel_context;
  const RopeTable& rope;
  Dispatcher& dispatcher;
  KvStorage& kv;
  const HeadShare& heads;  // of this rank
  RowExchange* exchange;   // with the ranks of the other heads; null: there are none
  DType gather_wire;       // what rows may be rounded to on their way into a projection
};

// Runs one stage of layer `layer`. Errors: kUnavailable if an expert-parallel peer is lost.
absl::Status RunStage(Stage stage, StepContext& step, int layer, const LayerWeights& weights,
                      MicroBatch& batch);

// to += from, both [T, N] and dense, by all threads.
void AddRows(ComputePool& pool, Matrix<const float> from, Matrix<float> to);

// The stages by family; RunStage chooses.
absl::Status GqaAttention(StepContext& step, int layer, const LayerWeights& weights,
                          MicroBatch& batch);
absl::Status MlaAttention(StepContext& step, int layer, const LayerWeights& weights,
                          MicroBatch& batch);

}  // namespace switchyard
