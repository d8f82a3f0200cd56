// Attention over latents (MLA; DeepSeek-V2, section 2.1), one layer. The cache holds a latent and a
// rotated key per token; W_uk and W_uv are how heads see them. Two forms of the same sums:
//   absorbed  queries go into latent space (W_uk), attention reads latents as keys and values, and
//             what it finds comes out through W_uv: little to read for a token alone;
//   expanded  keys and values of every head are made of the latents, and attention is as if they
//             had been cached: a third of the arithmetic, for rows enough to share them.
// They round differently, so a row's form follows from its token: docs/numerics.md.
#include <memory>
#include <numeric>

#include "common/status_macros.h"
#include "model/attention_parts.h"

namespace switchyard {
namespace {

// transformers builds the norms of MLA's latents with RMSNorm's default, not with rms_norm_eps.
constexpr float kLatentNormEps = 1e-6f;

// What is expanded at once. Short contexts are put together up to so many tokens, so that each
// weight is read for a tile's rows at least; of longer ones, as many heads as fit, one at least.
constexpr size_t kExpandedTokens = 1024, kExpandedBytesPerThread = size_t{4} << 20;
constexpr size_t kTokensOfGemm = 256;  // the latents and sums of one GEMM stay in the cache

struct Sizes {
  explicit Sizes(const StepContext& step)
      : heads(step.heads.heads),
        nope(step.config.qk_nope_head_dim),
        rope(step.config.qk_rope_head_dim),
        latent(step.config.kv_lora_rank),
        v(step.config.v_head_dim) {}
  size_t query() const { return nope + rope; }
  size_t cached() const { return latent + rope; }
  size_t expanded() const { return query() + v; }  // a key and a value of one head

  size_t heads, nope, rope, latent, v;
};

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

// The rows of `sequences`, those that follow one another in one piece.
void ForRuns(std::span<const AttentionSequence> sequences,
             FunctionRef<void(size_t first, size_t count)> body) {
  for (size_t i = 0; i < sequences.size();) {
    const auto first = static_cast<size_t>(sequences[i].first_row);
    size_t end = first;
    for (; i < sequences.size() && static_cast<size_t>(sequences[i].first_row) == end; ++i) {
      end += sequences[i].count;
    }
    body(first, end - first);
  }
}

// q [A, h·(nope + R)], out [A, h·v]: rows of b.absorbed.
void Absorbed(StepContext& step, int layer, const AttentionWeights& w, Matrix<float> q,
              Matrix<float> out, MicroBatch& b) {
  const Sizes d(step);
  const Matrix<float> q_latent = b.q_latent.Get(q.rows(), d.heads * d.cached());
  ForRuns(b.absorbed, [&](size_t first, size_t count) {
    const Matrix<float> from = q.Slice(first, count), to = q_latent.Slice(first, count);
    GemmOfHeads(step, b, from, d.query(), w.uk, to, d.cached());
    step.kernel_context.pool.ForRanges(count, d.heads * d.rope, [&](size_t begin, size_t end, int) {
      for (size_t t = begin; t < end; ++t) {
        for (size_t h = 0; h < d.heads; ++h) {
          std::copy_n(from.row(t) + h * d.query() + d.nope, d.rope,
                      to.row(t) + h * d.cached() + d.latent);
        }
      }
    });
  });
  const Matrix<float> context = b.context.Get(q.rows(), d.heads * d.latent);
  step.kernels.attention->PagedAttention(step.kernel_context,
                                         {.heads = step.heads.heads,
                                          .kv_heads = 1,
                                          .qk_dim = static_cast<int>(d.cached()),
                                          .v_dim = step.config.kv_lora_rank,
                                          .scale = step.config.attention_scale},
                                         step.kv.layout().Addressing(), step.kv.Layer(layer),
                                         b.absorbed, q_latent, context);
  ForRuns(b.absorbed, [&](size_t first, size_t count) {
    GemmOfHeads(step, b, context.Slice(first, count), d.latent, w.uv, out.Slice(first, count), d.v);
  });
}

size_t ContextOf(const AttentionSequence& s) {
  return static_cast<size_t>(s.first_position) + s.count;
}

// The cached tokens of some sequences as keys and values of some heads: a small cache of its own,
// [heads][token][nope + R, v], which lives as long as the attention that reads it.
class Expansion {
 public:
  // Of `tokens` in all, the sum of the sequences' contexts.
  Expansion(StepContext& step, int layer, std::span<const AttentionSequence> sequences,
            size_t tokens, MicroBatch& b)
      : step_(step),
        d_(step),
        b_(b),
        tokens_(tokens),
        room_((tokens + kExpandedTokens - 1) / kExpandedTokens * kExpandedTokens) {
    const KvAddressing a = step.kv.layout().Addressing();
    dtype_ = a.dtype;
    cached_ = {b.cached_tokens.Get(room_), tokens};
    const std::span table(b.expanded_blocks.Get(room_), tokens);
    std::iota(table.begin(), table.end(), 0);  // a token is a block
    b.expanding.assign(sequences.begin(), sequences.end());
    size_t next = 0;
    for (AttentionSequence& s : b.expanding) {
      const size_t context = ContextOf(s), first = next;
      for (size_t p = 0; p < context; ++p) {
        const size_t at = s.blocks[p / a.block_tokens] * a.block_stride + a.k_offset +
                          p % a.block_tokens * a.k_token_stride;
        cached_[next++] = step.kv.Layer(layer) + at * SizeOf(dtype_);
      }
      s.blocks = table.subspan(first, context);
    }
  }

  size_t BytesPerHead() const { return room_ * d_.expanded() * SizeOf(dtype_); }

  // out's columns of heads [first, first + count) = attention of q's. All rows of the sequences.
  void Attend(const AttentionWeights& w, size_t first, size_t count, Matrix<float> q,
              Matrix<float> out) {
    std::byte* const to = b_.expanded_kv.Get(count * BytesPerHead());
    for (size_t token = 0; token < tokens_; token += kTokensOfGemm) {
      const size_t some = std::min(kTokensOfGemm, tokens_ - token);
      if (dtype_ == DType::kBfloat16) {
        Expand(w, first, count, token, some, reinterpret_cast<Bf16*>(to));
      } else {
        Expand(w, first, count, token, some, reinterpret_cast<float*>(to));
      }
    }
    const size_t head_stride = room_ * d_.expanded();
    step_.kernels.attention->PagedAttention(step_.kernel_context,
                                            {.heads = static_cast<int>(count),
                                             .kv_heads = static_cast<int>(count),
                                             .qk_dim = static_cast<int>(d_.query()),
                                             .v_dim = static_cast<int>(d_.v),
                                             .scale = step_.config.attention_scale},
                                            {.dtype = dtype_,
                                             .block_tokens = 1,
                                             .block_stride = d_.expanded(),
                                             .k_head_stride = head_stride,
                                             .v_offset = d_.query(),
                                             .v_head_stride = head_stride},
                                            to, b_.expanding,
                                            Columns(q, first * d_.query(), count * d_.query()),
                                            Columns(out, first * d_.v, count * d_.v));
  }

 private:
  // Keys and values of tokens [token, token + some), rounded as if the cache had them.
  template <typename T>
  void Expand(const AttentionWeights& w, size_t first, size_t count, size_t token, size_t some,
              T* to) {
    ComputePool& pool = step_.kernel_context.pool;
    const size_t width = d_.nope + d_.v;
    const Matrix<float> latents = b_.latents.Get(kTokensOfGemm, d_.latent).Slice(0, some);
    const Matrix<float> sums = b_.expanded_sums.Get(kTokensOfGemm, count * width).Slice(0, some);
    pool.ForRanges(some, d_.latent, [&](size_t begin, size_t end, int) {
      for (size_t t = begin; t < end; ++t) {
        LoadRow(reinterpret_cast<const T*>(cached_[token + t]), d_.latent, latents.row(t));
      }
    });
    GemmCall* const calls = b_.head_calls.Get(2 * count);
    for (size_t i = 0; i < count; ++i) {
      const auto call = [&](const PackedWeight& weight, size_t column) {
        return GemmCall{latents, &weight, Columns(sums, i * width + column, weight.n)};
      };
      std::construct_at(&calls[2 * i], call(w.uk_keys[first + i], 0));
      std::construct_at(&calls[2 * i + 1], call(w.uv[first + i], d_.nope));
    }
    step_.kernels.gemm->GemmAll(step_.kernel_context, {calls, 2 * count});
    pool.ForRanges(some, count * d_.expanded(), [&](size_t begin, size_t end, int) {
      for (size_t t = begin; t < end; ++t) {
        const T* const rope = reinterpret_cast<const T*>(cached_[token + t]) + d_.latent;
        for (size_t i = 0; i < count; ++i) {
          T* const row = to + (i * room_ + token + t) * d_.expanded();
          const float* const sum = sums.row(t) + i * width;
          StoreRow(sum, d_.nope, row);
          std::copy_n(rope, d_.rope, row + d_.nope);
          StoreRow(sum + d_.nope, d_.v, row + d_.query());
        }
      }
    });
  }

  StepContext& step_;
  const Sizes d_;
  MicroBatch& b_;
  // Memory is taken for `room_`, so that it does not grow with every step of a long prompt.
  const size_t tokens_, room_;
  DType dtype_;
  std::span<const std::byte*> cached_;  // [tokens]: where each token's latent is
};

// q [A, h·(nope + R)], out [A, h·v]: rows of b.expanded. Every cached token of their sequences is
// expanded again: its keys and values would take h·(nope + R + v) ÷ (C + R) times its place.
void Expanded(StepContext& step, int layer, const AttentionWeights& w, Matrix<float> q,
              Matrix<float> out, MicroBatch& b) {
  const size_t heads = step.heads.heads;
  const size_t bytes = kExpandedBytesPerThread * step.kernel_context.pool.threads();
  for (std::span<const AttentionSequence> left = b.expanded; !left.empty();) {
    size_t count = 1, tokens = ContextOf(left[0]);
    while (count < left.size() && tokens + ContextOf(left[count]) <= kExpandedTokens) {
      tokens += ContextOf(left[count++]);
    }
    Expansion some(step, layer, left.first(count), tokens, b);
    const size_t group = std::clamp<size_t>(bytes / some.BytesPerHead(), 1, heads);
    for (size_t h = 0; h < heads; h += group) {
      some.Attend(w, h, std::min(group, heads - h), q, out);
    }
    left = left.subspan(count);
  }
}

}  // namespace

absl::Status MlaAttention(StepContext& step, int layer, const LayerWeights& weights,
                          MicroBatch& b) {
  const AttentionWeights& w = weights.attention;
  const NormOps& norm = *step.kernels.norm;
  KernelContext& ctx = step.kernel_context;
  const Sizes d(step);
  const size_t rows = b.all_rows();

  ASSIGN_OR_RETURN(const Matrix<float> x, InputNorm(step, weights, b));
  const bool low_rank = step.config.q_lora_rank > 0;
  const PackedWeight& to_q = low_rank ? w.q_a : w.q_b;
  Matrix<float> q = (low_rank ? b.q_low : b.q).Get(rows, to_q.n);
  const Matrix<float> kv = b.kv.Get(rows, w.kv_a.n);  // [A, C + R]
  const GemmCall calls[] = {{x, &to_q, q}, {x, &w.kv_a, kv}};
  step.kernels.gemm->GemmAll(ctx, calls);
  AddBias(w.kv_a_bias, kv);
  if (low_rank) {
    AddBias(w.q_a_bias, q);
    norm.RmsNorm(ctx, q, w.q_a_norm, kLatentNormEps, q);
    const Matrix<float> low = q;
    q = b.q.Get(rows, w.q_b.n);  // [A, h·(nope + R)]
    step.kernels.gemm->Gemm(ctx, low, w.q_b, q);
  }
  const Matrix<float> kv_latent = Columns(kv, 0, d.latent);
  norm.RmsNorm(ctx, kv_latent, w.kv_a_norm, kLatentNormEps, kv_latent);
  Rope(step, b, 1, d.cached(), Columns(kv, d.latent, d.rope));
  Rope(step, b, step.heads.heads, d.query(), Columns(q, d.nope, q.cols() - d.nope));
  const KvAddressing a = step.kv.layout().Addressing();
  WriteKv(step, a, {a.k_offset, a.k_head_stride, a.k_token_stride}, layer, 1, kv, b);

  const Matrix<float> out = b.heads_out.Get(rows, d.heads * d.v);
  if (!b.absorbed.empty()) Absorbed(step, layer, w, q, out, b);
  if (!b.expanded.empty()) Expanded(step, layer, w, q, out, b);
  return ProjectOutput(step, weights, out, b);
}

}  // namespace switchyard
