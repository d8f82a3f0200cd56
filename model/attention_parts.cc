#include "model/attention_parts.h"

#include "common/status_macros.h"

namespace switchyard {
namespace {

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
          StoreRow(from + g * width, width, token + g * place.head_stride);
        }
      }
    });
  }
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

}  // namespace

absl::StatusOr<Matrix<float>> InputNorm(StepContext& step, const LayerWeights& w, MicroBatch& b) {
  const Matrix<float> x = b.normed.Get(b.rows(), step.config.hidden_size);
  step.kernels.norm->RmsNorm(step.kernel_context, b.residual, w.input_norm,
                             step.config.rms_norm_eps, x);
  if (step.exchange == nullptr) return x;
  const Matrix<float> all = b.gathered.Get(b.all_rows(), x.cols());
  RETURN_IF_ERROR(GatherRows(*step.exchange, x, step.gather_wire, all));
  return all;
}

void AddBias(std::span<const float> bias, Matrix<float> y) {
  for (size_t t = 0; t < y.rows(); ++t) {
    for (size_t i = 0; i < bias.size(); ++i) y.row(t)[i] += bias[i];
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

void WriteKv(StepContext& step, const KvAddressing& a, const KvPlace& place, int layer, int heads,
             Matrix<const float> rows, const MicroBatch& b) {
  ComputePool& pool = step.kernel_context.pool;
  if (a.dtype == DType::kBfloat16) {
    WriteKvAs<Bf16>(pool, a, place, step.kv.Layer(layer), heads, rows, b.sequences);
  } else {
    WriteKvAs<float>(pool, a, place, step.kv.Layer(layer), heads, rows, b.sequences);
  }
}

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

}  // namespace switchyard
