// The attention half of a layer, on a device: as model/gqa_attention.cc and mla_attention.cc.
#include "common/status_macros.h"
#include "kernels/cuda/attention.h"
#include "model/cuda/layers.h"
#include "model/cuda/support.h"

namespace switchyard::cuda {
namespace {

// transformers builds the norms of MLA's latents with RMSNorm's default, not with rms_norm_eps.
constexpr float kLatentNormEps = 1e-6f;

DeviceMatrix<float> Columns(DeviceMatrix<float> m, int64_t begin, int count) {
  return {m.data + begin, m.rows, count, m.stride};
}

// Rows of `count` parts of a row each.
DeviceMatrix<float> Parts(DeviceMatrix<float> m, int count, int64_t begin, int cols) {
  return {m.data + begin, m.rows * count, cols, m.cols / count};
}

}  // namespace

absl::Status DeviceLayers::Norm(const float* weight, float eps, DeviceMatrix<float> x,
                                DeviceMatrix<float> y) {
  return RmsNorm(stream_.get(), x, weight, eps, y);
}

absl::Status DeviceLayers::Rope(const LayerStep& step, int heads, int64_t head_stride,
                                DeviceMatrix<float> x) {
  const DeviceRopeTable table{.cos = weights_.rope_cos,
                              .sin = weights_.rope_sin,
                              .dim = config_.RopeDim(),
                              .positions = weights_.rope_positions,
                              .interleaved = config_.rope_style == RopeStyle::kInterleaved};
  return ApplyRope(stream_.get(), table, step.arrays.positions, heads, head_stride, x);
}

absl::Status DeviceLayers::GroupProduct(const LayerStep& step, const GemmInput& x,
                                        const DeviceWeight& w, DeviceMatrix<float> y) {
  const RowGroups groups{.counts = step.arrays.group_rows, .rows_per_group = step.shape.rows};
  return Gemm(stream_.get(), path_, x, w, groups, Epilogue::kStore, y);
}

absl::Status DeviceLayers::Paged(const LayerStep& step, int layer, const DeviceKv& kv,
                                 DeviceMatrix<float> q, DeviceMatrix<float> out) {
  const AttentionBatch batch{.sequences = step.arrays.sequences,
                             .tables = step.arrays.tables,
                             .count = step.shape.sequences,
                             .rows_max = step.shape.rows_max,
                             .context_max = step.shape.context_max};
  return PagedAttention(stream_.get(), AttentionShapeOf(config_), kv.addressing(), kv.Layer(layer),
                        batch, q, step.split, step.attention_workspace, out);
}

// Sums over groups of heads in a binary tree, as the host: a rank that has an aligned part of the
// groups computes a subtree.
absl::Status DeviceLayers::Project(const DeviceAttention& w, const LayerStep& step, DeviceRows rows,
                                   const int32_t* index, int index_rows) {
  const int tokens = step.shape.rows, hidden = config_.hidden_size;
  ASSIGN_OR_RETURN(GemmInput x, Input(w.o, rows, index, index_rows));
  const DeviceMatrix<float> parts = Floats(w_.parts, groups_ * tokens, hidden);
  RETURN_IF_ERROR(GroupProduct(step, x, w.o, parts));
  const auto part = [&](int group) {
    return Floats(w_.parts + int64_t{group} * tokens * hidden, tokens, hidden);
  };
  for (int apart = 1; apart < groups_; apart *= 2) {
    for (int g = 0; g + apart < groups_; g += 2 * apart) {
      RETURN_IF_ERROR(AddRows(stream_.get(), part(g + apart), part(g)));
    }
  }
  const DeviceMatrix<float> sum = part(0);
  if (w.o_bias != nullptr) RETURN_IF_ERROR(AddBias(stream_.get(), w.o_bias, sum));
  return AddRows(stream_.get(), sum, Floats(w_.residual, tokens, hidden));
}

absl::Status DeviceLayers::Gqa(const DeviceAttention& w, const LayerStep& step, int layer,
                               const DeviceKv& kv) {
  const ModelConfig& c = config_;
  const int tokens = step.shape.rows;
  const DeviceMatrix<float> q = Floats(w_.q, tokens, w.q.n), k = Floats(w_.k, tokens, w.k.n),
                            v = Floats(w_.v, tokens, w.v.n);
  ASSIGN_OR_RETURN(const GemmInput x,
                   Input(w.q, Floats(w_.normed, tokens, c.hidden_size), nullptr, tokens));
  struct Projection {
    DeviceMatrix<float> y;
    const DeviceWeight& weight;
    const float *bias, *norm;
    int norm_width;
  };
  const Projection projections[] = {{q, w.q, w.q_bias, w.q_norm, w.q_norm_width},
                                    {k, w.k, w.k_bias, w.k_norm, w.k_norm_width},
                                    {v, w.v, w.v_bias, nullptr, 0}};
  for (const Projection& p : projections) {
    RETURN_IF_ERROR(Product(x, p.weight, p.y));
    if (p.bias != nullptr) RETURN_IF_ERROR(AddBias(stream_.get(), p.bias, p.y));
    if (p.norm != nullptr) {
      const DeviceMatrix<float> parts = Parts(p.y, p.y.cols / p.norm_width, 0, p.norm_width);
      RETURN_IF_ERROR(Norm(p.norm, c.rms_norm_eps, parts, parts));
    }
    if (c.clip_qkv) RETURN_IF_ERROR(Clip(stream_.get(), *c.clip_qkv, p.y));
  }
  RETURN_IF_ERROR(Rope(step, c.heads, c.head_dim, q));
  RETURN_IF_ERROR(Rope(step, c.kv_heads, c.head_dim, k));
  RETURN_IF_ERROR(WriteKv(stream_.get(), kv.addressing(), c.kv_heads, step.arrays.slots, k, v,
                          kv.Layer(layer)));
  const DeviceMatrix<float> heads = Floats(w_.wide, tokens, w.q.n);
  RETURN_IF_ERROR(Paged(step, layer, kv, q, heads));
  return Project(w, step, Parts(heads, groups_, 0, w.o.k), w_.groups_first, groups_ * tokens);
}

// Absorbed for every token. The products of single heads are groups of one: rows are brought head
// by head for them.
absl::Status DeviceLayers::Mla(const DeviceAttention& w, const LayerStep& step, int layer,
                               const DeviceKv& kv) {
  const ModelConfig& c = config_;
  const int tokens = step.shape.rows, heads = c.heads, rows = tokens * heads;
  const int nope = c.qk_nope_head_dim, rope = c.qk_rope_head_dim, latent = c.kv_lora_rank;
  const int q_dim = nope + rope, key_dim = latent + rope;
  Stream const stream = stream_.get();

  const bool low_rank = c.q_lora_rank > 0;
  const DeviceWeight& to_q = low_rank ? w.q_a : w.q_b;
  ASSIGN_OR_RETURN(GemmInput x,
                   Input(to_q, Floats(w_.normed, tokens, c.hidden_size), nullptr, tokens));
  const DeviceMatrix<float> q = Floats(w_.q, tokens, w.q_b.n),
                            q_low = Floats(w_.q_low, tokens, c.q_lora_rank),
                            keys = Floats(w_.k, tokens, key_dim);
  RETURN_IF_ERROR(Product(x, to_q, low_rank ? q_low : q));
  RETURN_IF_ERROR(Product(x, w.kv_a, keys));
  if (w.kv_a_bias != nullptr) RETURN_IF_ERROR(AddBias(stream, w.kv_a_bias, keys));
  if (low_rank) {
    if (w.q_a_bias != nullptr) RETURN_IF_ERROR(AddBias(stream, w.q_a_bias, q_low));
    RETURN_IF_ERROR(Norm(w.q_a_norm, kLatentNormEps, q_low, q_low));
    ASSIGN_OR_RETURN(x, Input(w.q_b, q_low, nullptr, tokens));
    RETURN_IF_ERROR(Product(x, w.q_b, q));
  }
  const DeviceMatrix<float> latents = Columns(keys, 0, latent);
  RETURN_IF_ERROR(Norm(w.kv_a_norm, kLatentNormEps, latents, latents));
  RETURN_IF_ERROR(Rope(step, 1, key_dim, Columns(keys, latent, rope)));
  RETURN_IF_ERROR(Rope(step, heads, q_dim, Columns(q, nope, q.cols - nope)));
  RETURN_IF_ERROR(
      WriteKv(stream, kv.addressing(), 1, step.arrays.slots, keys, {}, kv.Layer(layer)));

  // Queries into latent space, beside their rotated part: [T, h · (C + R)].
  ASSIGN_OR_RETURN(x, Input(w.uk, Parts(q, heads, 0, nope), w_.heads_first, rows));
  const DeviceMatrix<float> absorbed = Floats(w_.by_head, rows, latent);
  RETURN_IF_ERROR(GroupProduct(step, x, w.uk, absorbed));
  const DeviceMatrix<float> queries = Floats(w_.wide, tokens, heads * key_dim);
  RETURN_IF_ERROR(GatherRows(stream, absorbed, w_.tokens_first, Parts(queries, heads, 0, latent)));
  RETURN_IF_ERROR(GatherRows(stream, Parts(q, heads, nope, rope), nullptr,
                             Parts(queries, heads, latent, rope)));

  const DeviceMatrix<float> context = Floats(w_.by_head, tokens, heads * latent);
  RETURN_IF_ERROR(Paged(step, layer, kv, queries, context));
  ASSIGN_OR_RETURN(x, Input(w.uv, Parts(context, heads, 0, latent), w_.heads_first, rows));
  const DeviceMatrix<float> values = Floats(w_.wide, rows, c.v_head_dim);
  RETURN_IF_ERROR(GroupProduct(step, x, w.uv, values));
  return Project(w, step, values, w_.groups_first, rows);
}

absl::Status DeviceLayers::Attention(int layer, const LayerStep& step, const DeviceKv& kv) {
  const DeviceLayer& w = weights_.layers[layer];
  const int tokens = step.shape.rows, hidden = config_.hidden_size;
  RETURN_IF_ERROR(Norm(w.input_norm, config_.rms_norm_eps, Floats(w_.residual, tokens, hidden),
                       Floats(w_.normed, tokens, hidden)));
  return config_.attention == ModelConfig::Attention::kMla ? Mla(w.attention, step, layer, kv)
                                                           : Gqa(w.attention, step, layer, kv);
}

}  // namespace switchyard::cuda
