// kernels/cpu/attention_tile.h: attention of a tile of queries, the unit of work of CpuAttention.
#pragma once

#include <algorithm>
#include <cstring>

#include "kernels/attention.h"
#include "kernels/cpu/tiles.h"

namespace switchyard::cpu {

// A query is one head of one row. Queries of a tile share a sequence and a kv head, so that a
// sub-block of keys is converted once for all: 96 make that cost small beside the arithmetic, and
// their state (about 100 KiB at v_dim 128) stays in the cache.
constexpr int kTileQueries = 16 * kTileRows;
// What one or more segments found for a query, beside the sums of its values.
struct Found {
  float max, sum;
};

// Some queries over all of their keys, or over one segment of these: then the task leaves what it
// found in `found`, for another that merges.
struct AttentionTask {
  const AttentionSequence* sequence;
  int kv_head;
  int first, count;  // queries: row-major over the sequence's rows and the heads of the kv head
  int segment;       // the only one, or −1: all
  int segments;      // of the longest context
  float* found;      // [segments, count, found_stride], or null: all segments are this task's
                     // own. Of each: max and sum, then from `lanes` on the values [v_stride].
};

// What is fixed for one call.
struct AttentionCall {
  const Isa& isa;
  const AttentionShape& shape;
  const KvAddressing& addressing;
  const std::byte* kv;
  Matrix<const float> q;
  Matrix<float> out;

  TileKind kind() const { return KindOf(isa, FormatOf(addressing.dtype)); }
  int sharing() const { return shape.heads / shape.kv_heads; }
  size_t key_steps() const { return StepsOf(FormatOf(addressing.dtype), shape.qk_dim); }
  size_t value_steps() const { return StepsOf(FormatOf(addressing.dtype), kSubBlock); }
  size_t q_bytes() const { return LeftRowBytes(kind(), shape.qk_dim); }
  size_t weight_bytes() const { return LeftRowBytes(kind(), kSubBlock); }
  size_t v_stride() const { return RoundUp(shape.v_dim, isa.lanes); }
  size_t found_stride() const { return v_stride() + isa.lanes; }
};

// One task's working memory, from one thread's scratch.
struct AttentionWork {
  AttentionWork(const AttentionCall& call, Scratch& scratch)
      : q(scratch.Get<std::byte>(0, kTileQueries * call.q_bytes())),
        scores(scratch.Get<float>(1, kTileQueries * kSubBlock)),
        weights(scratch.Get<std::byte>(2, kTileQueries * call.weight_bytes())),
        keys(scratch.Get<uint32_t>(3, call.key_steps() * kSubBlock)),
        values(scratch.Get<uint32_t>(4, (call.value_steps() + 1) * call.v_stride())),
        segment(scratch.Get<float>(5, kTileQueries * call.v_stride())),
        total(scratch.Get<float>(6, kTileQueries * call.v_stride())),
        zeros(scratch.Get<unsigned char>(
            7, std::max<size_t>(call.key_steps(), call.v_stride()) * sizeof(uint32_t))) {}

  std::byte* q;          // [queries] left rows of qk_dim, 0 past it
  float* scores;         // [queries, kSubBlock]
  std::byte* weights;    // [queries] left rows of kSubBlock: exp of the scores, rounded
  uint32_t* keys;        // [key_steps, kSubBlock]: the right side of q·k
  uint32_t* values;      // [value_steps, v_stride]: of weights·v; then a step for an odd end
  float* segment;        // [queries, v_stride]: sums of the running segment
  float* total;          // [queries, v_stride]: of the segments before it
  unsigned char* zeros;  // a key or a value that is all 0
  Found in_segment[kTileQueries], in_total[kTileQueries];
};

// Where keys and values lie that will be wanted soon, fetched some lines at a time between pieces
// of arithmetic: a burst of them would make the processor wait. Runs of a cache are short, and the
// hardware's prefetcher does not see where the next block is.
class FetchAhead {
 public:
  // Rows to come: copies nothing; the addresses stay the caller's.
  void Start(const unsigned char* const* keys, size_t key_bytes, const unsigned char* const* values,
             size_t value_bytes, int count);
  bool done() const { return row_ == rows_; }
  void Some();

 private:
  const unsigned char* const* keys_ = nullptr;
  const unsigned char* const* values_ = nullptr;
  size_t key_bytes_ = 0, value_bytes_ = 0, at_ = 0;
  int row_ = 0, rows_ = 0;
  bool in_values_ = false;
};

// One task: sub-block after sub-block of keys over all of its queries. A query is named by its
// index in the task.
class TileOfQueries {
 public:
  TileOfQueries(const AttentionCall& call, const AttentionTask& task, AttentionWork& work)
      : call_(call), task_(task), w_(work) {}

  // The whole task, into call.out or task.found.
  void Run();
  // Of the whole queries: the segments that other tasks left, in ascending order, into call.out.
  void MergeFound();

 private:
  // The addresses of a sub-block.
  struct Rows {
    const unsigned char *keys[kSubBlock], *values[kSubBlock];
  };

  int Row(int i) const { return (task_.first + i) / call_.sharing(); }  // of the sequence
  size_t Head(int i) const {
    return static_cast<size_t>(task_.kv_head) * call_.sharing() +
           (task_.first + i) % call_.sharing();
  }
  // Query i attends to keys [Start(i), Context(i)); KeysOf: up to there in the sub-block at `base`.
  int Context(int i) const { return task_.sequence->first_position + Row(i) + 1; }
  int Start(int i) const {
    return call_.shape.window > 0 ? std::max(0, Context(i) - call_.shape.window) : 0;
  }
  int KeysOf(int i, int base) const { return std::min(kSubBlock, Context(i) - base); }
  // The sub-block at `base` is the first of its segment that query i attends to.
  bool Opens(int i, int base) const {
    return base == std::max(base - base % kAttentionSegment, Start(i) - Start(i) % kSubBlock);
  }
  float* FoundAt(int segment, int i) const {
    return task_.found + (static_cast<size_t>(segment) * task_.count + i) * call_.found_stride();
  }

  void Locate(int base, int count, Rows& rows) const;
  void LoadQueries();
  void LoadKeys(const Rows& rows);
  void LoadValues(const Rows& rows, int count);
  void Multiply(const std::byte* a, size_t a_bytes, const uint32_t* b, size_t columns, size_t steps,
                float* c, size_t c_stride, int rows, bool accumulate);
  // Of queries [first, last).
  void Scores(int first, int last);
  void Softmax(int i, int base);
  void AddValues(int first, int last, int base);
  void Merge(int i, Found segment, const float* values, bool first_segment);
  void Leave(int i);
  void Finish(int i);

  const AttentionCall& call_;
  const AttentionTask& task_;
  AttentionWork& w_;
  FetchAhead ahead_;
};

}  // namespace switchyard::cpu
