#include <cstring>

#include "kernels/cpu/cpu_kernels.h"
#include "kernels/cpu/tiles.h"

namespace switchyard {

using namespace cpu;  // NOLINT: this folder's own

namespace {

// A query is one head of one row. Queries of a tile share a sequence and a kv head, so that a
// sub-block of keys is converted once for all: 96 make that cost small beside the arithmetic, and
// their state (about 100 KiB at v_dim 128) stays in the cache.
constexpr int kTileQueries = 16 * kTileRows;

struct Task {
  const AttentionSequence* sequence;
  int kv_head;
  int first, count;  // queries: row-major over the sequence's rows and the heads of the kv head
};

// What is fixed for one call.
struct Call {
  const Isa& isa;
  const AttentionShape& shape;
  const KvAddressing& addressing;
  const std::byte* kv;
  Matrix<const float> q;
  Matrix<float> out;

  int sharing() const { return shape.heads / shape.kv_heads; }
  size_t key_steps() const { return StepsOf(addressing.dtype, shape.qk_dim); }
  size_t q_stride() const { return key_steps() * (addressing.dtype == DType::kFloat32 ? 1 : 2); }
  size_t v_stride() const { return RoundUp(shape.v_dim, isa.lanes); }
};

// One task's working memory, from one thread's scratch.
struct Work {
  Work(const Call& call, Scratch& scratch)
      : q(scratch.Get<float>(0, kTileQueries * call.q_stride())),
        scores(scratch.Get<float>(1, kTileQueries * kSubBlock)),
        keys(scratch.Get<uint32_t>(2, call.key_steps() * kSubBlock)),
        values(scratch.Get<float>(3, kSubBlock * call.v_stride())),
        segment(scratch.Get<float>(4, kTileQueries * call.v_stride())),
        total(scratch.Get<float>(5, kTileQueries * call.v_stride())),
        zeros(scratch.Get<unsigned char>(6, call.key_steps() * sizeof(uint32_t))) {}

  float* q;              // [queries, q_stride], 0 past qk_dim
  float* scores;         // [queries, kSubBlock]
  uint32_t* keys;        // [key_steps, kSubBlock]: the right side of q·k
  float* values;         // [kSubBlock, v_stride], 0 past v_dim
  float* segment;        // [queries, v_stride]: sums of the running segment
  float* total;          // [queries, v_stride]: of the segments before it
  unsigned char* zeros;  // a key that is all 0
  float segment_max[kTileQueries], segment_sum[kTileQueries];
  float total_max[kTileQueries], total_sum[kTileQueries];
};

// One task: sub-block after sub-block of keys over all of its queries. A query is named by its
// index in the task.
class TileOfQueries {
 public:
  TileOfQueries(const Call& call, const Task& task, Work& work)
      : call_(call), task_(task), w_(work) {}

  void Run() {
    LoadQueries();
    const int context_max = Context(task_.count - 1);
    int first = 0;  // contexts ascend: queries before `first` are finished
    for (int base = 0; base < context_max; base += kSubBlock) {
      while (Context(first) <= base) ++first;
      LoadKeysAndValues(base, std::min(kSubBlock, context_max - base), context_max);
      Scores(first);
      const bool opens = base % kAttentionSegment == 0;
      for (int i = first; i < task_.count; ++i) Softmax(i, KeysOf(i, base), opens);
      AddValues(first, base, opens);
      const bool closes = (base + kSubBlock) % kAttentionSegment == 0;
      for (int i = first; i < task_.count; ++i) {
        if (closes || Context(i) <= base + kSubBlock) Merge(i, base < kAttentionSegment);
      }
    }
    for (int i = 0; i < task_.count; ++i) Finish(i);
  }

 private:
  int Row(int i) const { return (task_.first + i) / call_.sharing(); }  // of the sequence
  size_t Head(int i) const {
    return static_cast<size_t>(task_.kv_head) * call_.sharing() +
           (task_.first + i) % call_.sharing();
  }
  // Keys that query i attends to: all, and of those in the sub-block at `base`.
  int Context(int i) const { return task_.sequence->first_position + Row(i) + 1; }
  int KeysOf(int i, int base) const { return std::min(kSubBlock, Context(i) - base); }

  struct Address {
    const unsigned char *key, *value;
  };
  Address AddressOf(int position) const {
    const KvAddressing& a = call_.addressing;
    const size_t block = task_.sequence->blocks[position / a.block_tokens];
    const size_t token = position % a.block_tokens, head = task_.kv_head;
    const size_t k = a.k_offset + head * a.k_head_stride + token * a.k_token_stride;
    const size_t v = a.v_offset + head * a.v_head_stride + token * a.v_token_stride;
    const auto* base = reinterpret_cast<const unsigned char*>(call_.kv);
    return {base + (block * a.block_stride + k) * SizeOf(a.dtype),
            base + (block * a.block_stride + v) * SizeOf(a.dtype)};
  }

  // Runs of keys are short, and the hardware's prefetcher does not see where the next block is.
  static void Prefetch(const unsigned char* p, size_t bytes) {
    for (size_t i = 0; i < bytes; i += 64) __builtin_prefetch(p + i, 0, 2);
  }

  void LoadQueries() {
    const size_t dim = call_.shape.qk_dim, stride = call_.q_stride();
    for (int i = 0; i < task_.count; ++i) {
      float* to = w_.q + i * stride;
      std::copy_n(call_.q.row(task_.sequence->first_row + Row(i)) + Head(i) * dim, dim, to);
      std::fill(to + dim, to + stride, 0.0f);
    }
    std::memset(w_.zeros, 0, call_.key_steps() * sizeof(uint32_t));
  }

  // The keys and values of positions [base, base + count); the rest of the sub-block reads as keys
  // of 0, and no memory of the cache beyond is touched.
  void LoadKeysAndValues(int base, int count, int context_max) {
    const size_t element = SizeOf(call_.addressing.dtype);
    const size_t k_dim = call_.shape.qk_dim, v_dim = call_.shape.v_dim, stride = call_.v_stride();
    const unsigned char* keys[kSubBlock];
    std::fill_n(keys, kSubBlock, w_.zeros);
    for (int j = 0; j < count; ++j) {
      const Address at = AddressOf(base + j);
      keys[j] = at.key;
      float* to = w_.values + j * stride;
      if (call_.addressing.dtype == DType::kFloat32) {
        std::memcpy(to, at.value, v_dim * sizeof(float));
      } else {
        call_.isa.widen(reinterpret_cast<const uint16_t*>(at.value), v_dim, to);
      }
      std::fill(to + v_dim, to + stride, 0.0f);
      if (base + j + kSubBlock < context_max) {
        const Address next = AddressOf(base + j + kSubBlock);
        Prefetch(next.key, k_dim * element);
        if (next.value != next.key) Prefetch(next.value, v_dim * element);
      }
    }
    const size_t whole = call_.shape.qk_dim * element / sizeof(uint32_t);
    call_.isa.transpose(keys, whole, w_.keys);
    if (whole == call_.key_steps()) return;
    for (int j = 0; j < kSubBlock; ++j) {  // the last BF16 of an odd length
      uint16_t last;
      std::memcpy(&last, keys[j] + whole * sizeof(uint32_t), sizeof(last));
      w_.keys[whole * kSubBlock + j] = last;
    }
  }

  void Multiply(TileKind kind, const float* a, size_t a_stride, const uint32_t* b, size_t columns,
                size_t steps, float* c, size_t c_stride, int rows, bool accumulate) {
    const size_t width = static_cast<size_t>(call_.isa.lanes) * call_.isa.tile_vectors;
    for (size_t column = 0; column < columns; column += width) {
      call_.isa.tile[kind](
          {.a = a,
           .a_stride = a_stride * sizeof(float),
           .b = b + column,
           .b_stride = columns,
           .steps = steps,
           .c = c + column,
           .c_stride = c_stride,
           .rows = rows,
           .vectors = static_cast<int>(std::min(width, columns - column) / call_.isa.lanes),
           .accumulate = accumulate});
    }
  }

  void Scores(int first) {
    const TileKind kind = call_.addressing.dtype == DType::kFloat32 ? kTileFloat : kTileWiden;
    for (int i = first; i < task_.count; i += kTileRows) {
      Multiply(kind, w_.q + i * call_.q_stride(), call_.q_stride(), w_.keys, kSubBlock,
               call_.key_steps(), w_.scores + i * kSubBlock, kSubBlock,
               std::min(kTileRows, task_.count - i), false);
    }
  }

  void Softmax(int i, int keys, bool opens) {
    if (opens) {
      w_.segment_max[i] = -__builtin_inff();
      w_.segment_sum[i] = 0;
    }
    const float factor = call_.isa.softmax_step(w_.scores + i * kSubBlock, keys, call_.shape.scale,
                                                &w_.segment_max[i], &w_.segment_sum[i]);
    if (!opens && factor != 1.0f) {
      call_.isa.scale(w_.segment + i * call_.v_stride(), call_.v_stride(), factor);
    }
  }

  // segment += scores · values. Queries with the same number of keys go together: a key that is not
  // a query's own is not even multiplied by 0, for its value may be NaN.
  void AddValues(int first, int base, bool opens) {
    const size_t stride = call_.v_stride();
    for (int i = first, rows = 0; i < task_.count; i += rows) {
      const int keys = KeysOf(i, base);
      rows = 1;
      while (rows < kTileRows && i + rows < task_.count && KeysOf(i + rows, base) == keys) ++rows;
      Multiply(kTileFloat, w_.scores + i * kSubBlock, kSubBlock,
               reinterpret_cast<const uint32_t*>(w_.values), stride, keys, w_.segment + i * stride,
               stride, rows, !opens);
    }
  }

  // The running segment of query i joins the total.
  void Merge(int i, bool first_segment) {
    const size_t stride = call_.v_stride();
    float *total = w_.total + i * stride, *segment = w_.segment + i * stride;
    if (first_segment) {
      std::copy_n(segment, stride, total);
      w_.total_max[i] = w_.segment_max[i];
      w_.total_sum[i] = w_.segment_sum[i];
      return;
    }
    const float max = std::max(w_.total_max[i], w_.segment_max[i]);
    const float old_factor = call_.isa.exp(w_.total_max[i] - max);
    const float new_factor = call_.isa.exp(w_.segment_max[i] - max);
    call_.isa.merge(total, old_factor, segment, new_factor, stride);
    w_.total_sum[i] = w_.total_sum[i] * old_factor + w_.segment_sum[i] * new_factor;
    w_.total_max[i] = max;
  }

  void Finish(int i) {
    const size_t dim = call_.shape.v_dim;
    float* total = w_.total + i * call_.v_stride();
    call_.isa.scale(total, dim, 1.0f / w_.total_sum[i]);
    std::copy_n(total, dim, call_.out.row(task_.sequence->first_row + Row(i)) + Head(i) * dim);
  }

  const Call& call_;
  const Task& task_;
  Work& w_;
};

// The tasks of a call, in scratch; the most expensive, the last rows, come first.
std::span<const Task> Split(KernelContext& ctx, const Call& call,
                            std::span<const AttentionSequence> sequences) {
  const auto tiles = [&](const AttentionSequence& s) {
    return (static_cast<size_t>(s.count) * call.sharing() + kTileQueries - 1) / kTileQueries;
  };
  size_t most = 0, count = 0;
  for (const AttentionSequence& s : sequences) most += tiles(s) * call.shape.kv_heads;
  Task* tasks = ctx.scratch.Get<Task>(0, most);
  for (const AttentionSequence& s : sequences) {
    if (s.count == 0) continue;
    const size_t context = static_cast<size_t>(s.first_position) + s.count;
    SY_CHECK_MSG(s.blocks.size() * call.addressing.block_tokens >= context, s.blocks.size(),
                 " blocks for ", context, " positions");
    SY_CHECK_MSG(s.first_row + s.count <= static_cast<int64_t>(call.q.rows()), "row ", s.first_row,
                 " + ", s.count);
    const int queries = s.count * call.sharing();
    const int even = static_cast<int>(RoundUp((queries - 1) / tiles(s) + 1, kTileRows));
    for (int first = (queries - 1) / even * even; first >= 0; first -= even) {
      for (int head = 0; head < call.shape.kv_heads; ++head) {
        tasks[count++] = {&s, head, first, std::min(even, queries - first)};
      }
    }
  }
  return {tasks, count};
}

}  // namespace

void CpuAttention::PagedAttention(KernelContext& ctx, const AttentionShape& shape,
                                  const KvAddressing& addressing, const std::byte* kv,
                                  std::span<const AttentionSequence> sequences,
                                  Matrix<const float> q, Matrix<float> out) const {
  SY_CHECK_MSG(shape.kv_heads >= 1 && shape.heads % shape.kv_heads == 0, shape.heads, " heads, ",
               shape.kv_heads, " kv heads");
  const Call call{isa_, shape, addressing, kv, q, out};
  const std::span<const Task> tasks = Split(ctx, call, sequences);
  ctx.pool.ParallelFor(tasks.size(), [&](size_t i, int thread) {
    Work work(call, ctx.thread_scratch[thread]);
    TileOfQueries(call, tasks[i], work).Run();
  });
}

}  // namespace switchyard
