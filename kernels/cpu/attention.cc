#include "kernels/cpu/attention_tile.h"
#include "kernels/cpu/cpu_kernels.h"

namespace switchyard {

using namespace cpu;  // NOLINT: this folder's own

namespace {

// Tasks that a thread should find, so that none waits long for another's last.
constexpr size_t kTasksPerThread = 4;

// The tasks of a call, in scratch; the most expensive, the last rows, come first.
struct Tasks {
  std::span<AttentionTask> whole;  // over all of their keys
  std::span<AttentionTask>
      pieces;  // empty, or `whole` with those that have `found` cut into segments
};

int Segments(const AttentionSequence& s) {
  return (s.first_position + s.count - 1) / kAttentionSegment + 1;
}

Tasks Split(KernelContext& ctx, const AttentionCall& call,
            std::span<const AttentionSequence> sequences) {
  const auto tiles = [&](const AttentionSequence& s) {
    return (static_cast<size_t>(s.count) * call.sharing() + kTileQueries - 1) / kTileQueries;
  };
  size_t most = 0, count = 0;
  for (const AttentionSequence& s : sequences) most += tiles(s) * call.shape.kv_heads;
  AttentionTask* tasks = ctx.scratch.Get<AttentionTask>(0, most);
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
        tasks[count++] = {&s, head,        first,  std::min(even, queries - first),
                          -1, Segments(s), nullptr};
      }
    }
  }
  return {{tasks, count}, {}};
}

// Cuts the tasks of single rows if there are too few tasks for the threads. (Those of longer chunks
// would leave too much behind.)
void SplitSegments(KernelContext& ctx, const AttentionCall& call, Tasks& tasks) {
  if (tasks.whole.size() >= kTasksPerThread * ctx.pool.threads() || ctx.pool.threads() == 1) return;
  const auto cut = [](const AttentionTask& t) { return t.segments > 1 && t.sequence->count == 1; };
  size_t pieces = 0, floats = 0;
  for (const AttentionTask& t : tasks.whole) {
    pieces += cut(t) ? t.segments : 1;
    floats += cut(t) ? t.segments * t.count * call.found_stride() : 0;
  }
  if (floats == 0) return;
  AttentionTask* piece = ctx.scratch.Get<AttentionTask>(1, pieces);
  float* found = ctx.scratch.Get<float>(2, floats);
  tasks.pieces = {piece, pieces};
  for (AttentionTask& t : tasks.whole) {
    if (!cut(t)) {
      *piece++ = t;
      continue;
    }
    t.found = found;
    found += t.segments * t.count * call.found_stride();
    for (int s = 0; s < t.segments; ++s) {
      *piece = t;
      (piece++)->segment = s;
    }
  }
}

}  // namespace

void CpuAttention::PagedAttention(KernelContext& ctx, const AttentionShape& shape,
                                  const KvAddressing& addressing, const std::byte* kv,
                                  std::span<const AttentionSequence> sequences,
                                  Matrix<const float> q, Matrix<float> out) const {
  SY_CHECK_MSG(shape.kv_heads >= 1 && shape.heads % shape.kv_heads == 0, shape.heads, " heads, ",
               shape.kv_heads, " kv heads");
  const AttentionCall call{isa_, shape, addressing, kv, q, out};
  // Which thread gets a task is chance: each must have its memory now, not at a later step.
  for (Scratch& scratch : ctx.thread_scratch) AttentionWork(call, scratch);
  Tasks tasks = Split(ctx, call, sequences);
  SplitSegments(ctx, call, tasks);
  const std::span<const AttentionTask> pieces = tasks.pieces.empty() ? tasks.whole : tasks.pieces;
  ctx.pool.ParallelFor(pieces.size(), [&](size_t i, int thread) {
    AttentionWork work(call, ctx.thread_scratch[thread]);
    TileOfQueries(call, pieces[i], work).Run();
  });
  if (tasks.pieces.empty()) return;
  ctx.pool.ParallelFor(tasks.whole.size(), [&](size_t i, int thread) {
    if (tasks.whole[i].found == nullptr) return;
    AttentionWork work(call, ctx.thread_scratch[thread]);
    TileOfQueries(call, tasks.whole[i], work).MergeFound();
  });
}

}  // namespace switchyard
