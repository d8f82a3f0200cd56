// The FFN half of a layer, and the table of stages.
#include "common/status_macros.h"
#include "kernels/gate.h"
#include "model/stages.h"

namespace switchyard {
namespace {

void PostNorm(StepContext& step, const LayerWeights& w, MicroBatch& b) {
  b.ffn_input = b.normed.Get(b.rows(), step.config.hidden_size);
  step.kernels.norm->RmsNorm(step.kernel_context, b.residual, w.post_norm, step.config.rms_norm_eps,
                             b.ffn_input);
}

// One expert that owns every row: a dense FFN or the shared expert.
Matrix<float> SingleFfn(StepContext& step, const PackedExpert& expert, MicroBatch& b,
                        GrowingArray<float>& to) {
  const Matrix<float> out = to.Get(b.rows(), step.config.hidden_size);
  const int32_t offsets[] = {0, static_cast<int32_t>(b.rows())};
  const PackedExpert* const experts[] = {&expert};
  step.kernels.grouped_gemm->ExpertFfn(step.kernel_context, b.ffn_input, {}, offsets, experts, out);
  return out;
}

void DenseFfn(StepContext& step, const LayerWeights& w, MicroBatch& b) {
  PostNorm(step, w, b);
  const Matrix<float> out = SingleFfn(step, w.experts[0], b, b.moe_sum);
  AddRows(step.kernel_context.pool, out, b.residual);
}

absl::Status DispatchSend(StepContext& step, int layer, const LayerWeights& w, MicroBatch& b) {
  PostNorm(step, w, b);
  const GateConfig& gate = step.config.gate;
  const Matrix<float> logits = b.gate_logits.Get(b.rows(), gate.experts);
  step.kernels.gemm->Gemm(step.kernel_context, b.ffn_input, w.gate, logits);
  const Matrix<int32_t> ids = b.expert_ids.Get(b.rows(), gate.top_k);
  const Matrix<float> weights = b.gate_weights.Get(b.rows(), gate.top_k);
  ChooseExperts(step.kernel_context, gate, logits, w.gate_bias, ids, weights);
  ASSIGN_OR_RETURN(b.dispatch,
                   step.dispatcher.Send(layer, b.ffn_input, ids, weights, b.own_positions()));
  // Needs no wire: computed while the rows travel.
  if (w.shared) SingleFfn(step, *w.shared, b, b.shared_out);
  return absl::OkStatus();
}

absl::Status Experts(StepContext& step, const LayerWeights& w, MicroBatch& b) {
  const auto& [tokens, index, offsets] = b.received;
  const size_t row_bytes = tokens.cols * SizeOf(tokens.dtype);
  b.expert_rows = {b.expert_bytes.Get(index.size() * row_bytes), tokens.dtype, index.size(),
                   tokens.cols, row_bytes};
  step.kernels.grouped_gemm->ExpertFfn(step.kernel_context, tokens, index, offsets, w.expert_table,
                                       b.expert_rows);
  return absl::OkStatus();
}

absl::Status CombineSend(StepContext& step, MicroBatch& b) {
  return step.dispatcher.CombineSend(b.dispatch, b.expert_rows,
                                     b.moe_sum.Get(b.rows(), step.config.hidden_size));
}

absl::Status CombineReceive(StepContext& step, const LayerWeights& w, MicroBatch& b) {
  RETURN_IF_ERROR(step.dispatcher.CombineReceive(b.dispatch));
  const size_t hidden = step.config.hidden_size;
  const Matrix<float> sum = b.moe_sum.Get(b.rows(), hidden);
  ComputePool& pool = step.kernel_context.pool;
  if (w.shared) AddRows(pool, b.shared_out.Get(b.rows(), hidden), sum);
  AddRows(pool, sum, b.residual);
  return absl::OkStatus();
}

}  // namespace

void AddRows(ComputePool& pool, Matrix<const float> from, Matrix<float> to) {
  pool.ForRanges(to.rows(), 2 * to.cols(), [&](size_t begin, size_t end, int) {
    float* __restrict y = to.row(begin);
    const float* x = from.row(begin);
    for (size_t i = 0; i < (end - begin) * to.cols(); ++i) y[i] += x[i];
  });
}

std::span<const Stage> StagesOf(bool is_moe) {
  static constexpr Stage kDense[] = {Stage::kAttention, Stage::kDenseFfn};
  static constexpr Stage kMoe[] = {Stage::kAttention, Stage::kDispatchSend, Stage::kDispatchReceive,
                                   Stage::kExperts,   Stage::kCombineSend,  Stage::kCombineReceive};
  return is_moe ? std::span<const Stage>(kMoe) : kDense;
}

absl::Status RunStage(Stage stage, StepContext& step, int layer, const LayerWeights& weights,
                      MicroBatch& batch) {
  switch (stage) {
    case Stage::kAttention:
      return (step.config.attention == ModelConfig::Attention::kMla ? MlaAttention : GqaAttention)(
          step, layer, weights, batch);
    case Stage::kDenseFfn:
      DenseFfn(step, weights, batch);
      return absl::OkStatus();
    case Stage::kDispatchSend:
      return DispatchSend(step, layer, weights, batch);
    case Stage::kDispatchReceive: {
      ASSIGN_OR_RETURN(batch.received, step.dispatcher.Receive(batch.dispatch));
      return absl::OkStatus();
    }
    case Stage::kExperts:
      return Experts(step, weights, batch);
    case Stage::kCombineSend:
      return CombineSend(step, batch);
    case Stage::kCombineReceive:
      return CombineReceive(step, weights, batch);
  }
  return absl::InternalError("no such stage");
}

}  // namespace switchyard
