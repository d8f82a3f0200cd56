// Attention of query heads in groups that share a key/value head, one layer: norm, projections,
// rope, KV write, paged attention, output projection. Rounding is in the kernels (inputs of GEMMs)
// and in WriteKv (the cache): docs/numerics.md.
#include "common/status_macros.h"
#include "model/attention_parts.h"

namespace switchyard {
namespace {

// RMSNorm over each part of x [T, N] that is as wide as the weight: a head, or all of them.
void QkNorm(StepContext& step, std::span<const float> weight, Matrix<float> x) {
  if (weight.empty()) return;
  const size_t width = weight.size();
  const Matrix<float> parts(x.data(), {x.rows() * x.cols() / width, width});
  step.kernels.norm->RmsNorm(step.kernel_context, parts, weight, step.config.rms_norm_eps, parts);
}

void Clip(std::optional<float> limit, Matrix<float> x) {
  if (!limit) return;
  for (float& v : std::span(x.data(), x.rows() * x.cols())) v = std::clamp(v, -*limit, *limit);
}

}  // namespace

absl::Status GqaAttention(StepContext& step, int layer, const LayerWeights& weights,
                          MicroBatch& b) {
  const ModelConfig& c = step.config;
  const HeadShare& h = step.heads;
  const AttentionWeights& w = weights.attention;
  ASSIGN_OR_RETURN(const Matrix<float> x, InputNorm(step, weights, b));
  const Matrix<float> q = b.q.Get(x.rows(), w.q.n), k = b.k.Get(x.rows(), w.k.n),
                      v = b.v.Get(x.rows(), w.v.n);
  const GemmCall calls[] = {{x, &w.q, q}, {x, &w.k, k}, {x, &w.v, v}};
  step.kernels.gemm->GemmAll(step.kernel_context, calls);
  AddBias(w.q_bias, q);
  AddBias(w.k_bias, k);
  AddBias(w.v_bias, v);
  QkNorm(step, w.q_norm, q);
  QkNorm(step, w.k_norm, k);
  for (const Matrix<float>& m : {q, k, v}) Clip(c.clip_qkv, m);
  Rope(step, b, h.heads, c.head_dim, q);
  Rope(step, b, h.stored, c.head_dim, k);

  KvAddressing a = step.kv.layout().Addressing();
  const size_t k_at = a.k_offset + h.first_stored * a.k_head_stride;
  const size_t v_at = a.v_offset + h.first_stored * a.v_head_stride;
  WriteKv(step, a, {k_at, a.k_head_stride, a.k_token_stride}, layer, h.stored, k, b);
  WriteKv(step, a, {v_at, a.v_head_stride, a.v_token_stride}, layer, h.stored, v, b);
  a.k_offset += h.first_kv * a.k_head_stride;
  a.v_offset += h.first_kv * a.v_head_stride;
  const Matrix<float> out = b.heads_out.Get(x.rows(), q.cols());
  step.kernels.attention->PagedAttention(step.kernel_context,
                                         {.heads = h.heads,
                                          .kv_heads = h.kv_heads,
                                          .qk_dim = c.head_dim,
                                          .v_dim = c.head_dim,
                                          .scale = c.attention_scale,
                                          .window = c.sliding_window},
                                         a, step.kv.Layer(layer), b.sequences, q, out);
  return ProjectOutput(step, weights, out, b);
}

}  // namespace switchyard
