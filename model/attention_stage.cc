// Attention of one layer: norm, projections, rope, KV write, paged attention, output projection.
// Rounding is in the kernels (inputs of GEMMs) and in WriteKv (the cache): docs/numerics.md.
#include <algorithm>
#include <memory>

#include "common/status_macros.h"
#include "model/stages.h"

namespace switchyard {
namespace {

// transformers builds the norms of MLA's latents with RMSNorm's default, not with rms_norm_eps.
constexpr float kLatentNormEps = 1e-6f;

Matrix<float> Columns(Matrix<float> m, size_t begin, size_t count) {
  return {m.data() + begin, {m.rows(), count}, m.row_stride()};
}

// Where one head's row of `width` elements of each token goes in a block.
struct KvPlace {
  size_t offset, head_stride, token_stride;
};

template <typename T>
void WriteRow(const float* from, size_t width, T* to) {
  if constexpr (std::is_same_v<T, Bf16>) {
    std::transform(from, from + width, to, ToBf16);
  } else {
    std::copy_n(from, width, to);
  }
}

// rows [A, heads·width] of this step into the blocks of their sequences.
template <typename T>
void WriteKvAs(ComputePool& pool, const KvAddressing& a, const KvPlace& place,
               std::byte* layer_base, int heads, Matrix<const float> rows,
               std::span<const AttentionSequence> sequences) {
  T* base = reinterpret_cast<T*>(layer_base);
  const size_t width = rows.cols() / heads;
  for (const AttentionSequence& s : sequences) {
    pool.ForRanges(s.count, rows.cols(), [&](size_t begin, size_t end, int) {
      for (size_t i = begin; i < end; ++i) {
        const size_t position = s.first_position + i;
        T* token = base + s.blocks[position / a.block_tokens] * a.block_stride + place.offset +
                   (position % a.block_tokens) * place.token_stride;
        const float* from = rows.row(s.first_row + i);
        for (int g = 0; g < heads; ++g) {
          WriteRow(from + g * width, width, token + g * place.head_stride);
        }
      }
    });
  }
}

void WriteKv(StepContext& step, const KvAddressing& a, const KvPlace& place, int layer, int heads,
             Matrix<const float> rows, const MicroBatch& b) {
  ComputePool& pool = step.kernel_context.pool;
  if (a.dtype == DType::kBfloat16) {
    WriteKvAs<Bf16>(pool, a, place, step.kv.Layer(layer), heads, rows, b.sequences);
  } else {
    WriteKvAs<float>(pool, a, place, step.kv.Layer(layer), heads, rows, b.sequences);
  }
}

void Rope(StepContext& step, const MicroBatch& b, int heads, size_t head_stride, Matrix<float> x) {
  step.kernel_context.pool.ForRanges(x.rows(), heads * static_cast<size_t>(step.rope.dim),
                                     [&](size_t begin, size_t end, int) {
                                       ApplyRope(step.rope, step.config.rope_style,
                                                 std::span(b.positions).subspan(begin, end - begin),
                                                 heads, head_stride, x.Slice(begin, end - begin));
                                     });
}

// out = the sum over head groups [begin, end) of their partial projections, as a binary tree that
// splits at half: a rank that owns an aligned part of the groups computes a subtree. `partial`
// points to a [T, H] matrix per remaining level.
void ProjectGroups(StepContext& step, const LayerWeights& w, Matrix<float> heads_out, size_t begin,
                   size_t end, Matrix<float> out, float* partial) {
  const auto group = [&](size_t i, Matrix<float> y) {
    const PackedWeight& o = w.attention.o[i];
    return GemmCall{Columns(heads_out, i * o.k, o.k), &o, y};
  };
  if (end - begin == 1) {
    const GemmCall only = group(begin, out);
    return step.kernels.gemm->GemmAll(step.kernel_context, {&only, 1});
  }
  const size_t middle = begin + (end - begin) / 2;
  const Matrix<float> right(partial, out.extents());
  if (end - begin == 2) {
    const GemmCall both[] = {group(begin, out), group(middle, right)};
    step.kernels.gemm->GemmAll(step.kernel_context, both);
  } else {
    float* deeper = partial + out.rows() * out.cols();
    ProjectGroups(step, w, heads_out, begin, middle, out, deeper);
    ProjectGroups(step, w, heads_out, middle, end, right, deeper);
  }
  AddRows(step.kernel_context.pool, right, out);
}

// `bias` [N] or empty.
void AddBias(std::span<const float> bias, Matrix<float> y) {
  for (size_t t = 0; t < y.rows(); ++t) {
    for (size_t i = 0; i < bias.size(); ++i) y.row(t)[i] += bias[i];
  }
}

// residual += o_proj(heads_out), heads_out [A, h·v].
absl::Status ProjectOutput(StepContext& step, const LayerWeights& w, Matrix<float> heads_out,
                           MicroBatch& b) {
  const size_t rows = b.all_rows(), hidden = step.config.hidden_size, groups = w.attention.o.size();
  size_t levels = 0;
  for (size_t n = groups; n > 1; n -= n / 2) ++levels;
  Matrix<float> out = b.projected.Get(rows, hidden);
  ProjectGroups(step, w, heads_out, 0, groups, out, b.partial.Get(levels * rows * hidden));
  ComputePool& pool = step.kernel_context.pool;
  if (step.exchange != nullptr) {
    float* const parts = b.parts.Get((step.exchange->ranks() - 1) * b.rows() * hidden);
    RETURN_IF_ERROR(SumRows(*step.exchange, pool, out, parts, &out));
  }
  AddBias(w.attention.o_bias, out);
  AddRows(pool, out, b.residual);
  return absl::OkStatus();
}

// Columns from h · y_step of y = columns from h · x_step of x, times w[h]: for every head h.
void GemmOfHeads(StepContext& step, MicroBatch& b, Matrix<float> x, size_t x_step,
                 const std::vector<PackedWeight>& w, Matrix<float> y, size_t y_step) {
  GemmCall* calls = b.head_calls.Get(w.size());
  for (size_t h = 0; h < w.size(); ++h) {
    std::construct_at(
        &calls[h], GemmCall{Columns(x, h * x_step, w[h].k), &w[h], Columns(y, h * y_step, w[h].n)});
  }
  step.kernels.gemm->GemmAll(step.kernel_context, {calls, w.size()});
}

// [A, H]: every rank norms its own rows.
absl::StatusOr<Matrix<float>> InputNorm(StepContext& step, const LayerWeights& w, MicroBatch& b) {
  const Matrix<float> x = b.normed.Get(b.rows(), step.config.hidden_size);
  step.kernels.norm->RmsNorm(step.kernel_context, b.residual, w.input_norm,
                             step.config.rms_norm_eps, x);
  if (step.exchange == nullptr) return x;
  const Matrix<float> all = b.gathered.Get(b.all_rows(), x.cols());
  RETURN_IF_ERROR(GatherRows(*step.exchange, x, step.gather_wire, all));
  return all;
}

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

// Absorbed for every token: queries go into latent space (W_uk), attention reads the latents as
// keys and values, and what it finds comes out through W_uv (DeepSeek-V2, section 2.1.2).
absl::Status MlaAttention(StepContext& step, int layer, const LayerWeights& weights,
                          MicroBatch& b) {
  const ModelConfig& c = step.config;
  const AttentionWeights& w = weights.attention;
  const NormOps& norm = *step.kernels.norm;
  KernelContext& ctx = step.kernel_context;
  const size_t rows = b.all_rows(), heads = step.heads.heads;
  const size_t nope = c.qk_nope_head_dim, v_dim = c.v_head_dim;
  const size_t rope = c.qk_rope_head_dim, latent = c.kv_lora_rank;
  const size_t q_dim = nope + rope, key_dim = latent + rope;

  ASSIGN_OR_RETURN(const Matrix<float> x, InputNorm(step, weights, b));
  const bool low_rank = c.q_lora_rank > 0;
  const PackedWeight& to_q = low_rank ? w.q_a : w.q_b;
  Matrix<float> q = (low_rank ? b.q_low : b.q).Get(rows, to_q.n);
  const Matrix<float> kv = b.kv.Get(rows, w.kv_a.n);  // [T, C + R]
  const GemmCall calls[] = {{x, &to_q, q}, {x, &w.kv_a, kv}};
  step.kernels.gemm->GemmAll(ctx, calls);
  AddBias(w.kv_a_bias, kv);
  if (low_rank) {
    AddBias(w.q_a_bias, q);
    norm.RmsNorm(ctx, q, w.q_a_norm, kLatentNormEps, q);
    const Matrix<float> low = q;
    q = b.q.Get(rows, w.q_b.n);  // [T, h·(nope + R)]
    step.kernels.gemm->Gemm(ctx, low, w.q_b, q);
  }
  const Matrix<float> kv_latent = Columns(kv, 0, latent);
  norm.RmsNorm(ctx, kv_latent, w.kv_a_norm, kLatentNormEps, kv_latent);
  Rope(step, b, 1, key_dim, Columns(kv, latent, rope));
  Rope(step, b, step.heads.heads, q_dim, Columns(q, nope, q.cols() - nope));
  const KvAddressing a = step.kv.layout().Addressing();
  WriteKv(step, a, {a.k_offset, a.k_head_stride, a.k_token_stride}, layer, 1, kv, b);

  const Matrix<float> q_latent = b.q_latent.Get(rows, heads * key_dim);
  GemmOfHeads(step, b, q, q_dim, w.uk, q_latent, key_dim);
  ctx.pool.ForRanges(rows, heads * rope, [&](size_t begin, size_t end, int) {
    for (size_t t = begin; t < end; ++t) {
      for (size_t h = 0; h < heads; ++h) {
        std::copy_n(q.row(t) + h * q_dim + nope, rope, q_latent.row(t) + h * key_dim + latent);
      }
    }
  });
  const Matrix<float> context = b.context.Get(rows, heads * latent);
  step.kernels.attention->PagedAttention(ctx,
                                         {.heads = step.heads.heads,
                                          .kv_heads = 1,
                                          .qk_dim = static_cast<int>(key_dim),
                                          .v_dim = c.kv_lora_rank,
                                          .scale = c.attention_scale},
                                         a, step.kv.Layer(layer), b.sequences, q_latent, context);
  const Matrix<float> out = b.heads_out.Get(rows, heads * v_dim);
  GemmOfHeads(step, b, context, latent, w.uv, out, v_dim);
  return ProjectOutput(step, weights, out, b);
}

}  // namespace switchyard
