// kernels/cuda/attention_tile.cuh: 32 rows of queries against sub-blocks of 64 keys on mma.sync, by
// 8 warps: warp w has rows 16 (w / 4) … + 16; of the scores the keys 16 (w % 4) … + 16, of the
// values the columns kV / 4 · (w % 4) … .
//
// A masked weight is 0, and a sub-block without a key of a row leaves its sums as they are. A key
// whose value is not finite has its value taken as 0 and its weight as NaN for the rows that may
// see it: rows before it are not touched by it, though 0 · NaN is NaN.
#pragma once

#include "kernels/cuda/attention_parts.h"

namespace switchyard::cuda {

inline constexpr int kQueryRows = 32, kSubBlock = 64, kAttentionThreads = 256;
inline constexpr int kColumnWarps = 4;

template <int kQk, int kV, bool kValuesInKeys>
struct AttentionShared {
  Bf16 q[kQueryRows][kQk + 8];
  Bf16 k[kSubBlock][kQk + 8];
  Bf16 v[kValuesInKeys ? 1 : kSubBlock][kV + 8];
  Bf16 p[kQueryRows][kSubBlock + 8];
  float max[kColumnWarps][kQueryRows];
  float sum[kColumnWarps][kQueryRows];
  int not_finite[kSubBlock];  // the key's value
};

template <int kQk, int kV, bool kValuesInKeys>
class AttentionTile {
 public:
  using Shared = AttentionShared<kQk, kV, kValuesInKeys>;
  static constexpr int kPieces = kV / kColumnWarps / 8;  // of 16 rows by 8 columns
  using Values = float[kPieces][4];

  // Rows `first`… of the (token, head) pairs of sequence `s` and kv head `head`.
  __device__ AttentionTile(const AttentionArguments& a, Shared& shared, const DeviceSequence& s,
                           int head, int first)
      : a_(a),
        s_(shared),
        sequence_(s),
        table_(a.batch.tables + s.table_offset),
        head_(head),
        first_(first),
        sharing_(a.shape.heads / a.shape.kv_heads) {
    const int pairs = s.count * sharing_, left = pairs - first;
    count_ = left < kQueryRows ? left : kQueryRows;
    begin_ = KeysOf(a.shape, Position(0)).begin;
    end_ = KeysOf(a.shape, Position(count_ - 1)).end;
  }

  __device__ int begin() const { return begin_; }
  __device__ int end() const { return end_; }

  __device__ void LoadQueries() {
    for (int i = static_cast<int>(threadIdx.x); i < kQueryRows * kQk; i += kAttentionThreads) {
      const int row = i / kQk, column = i % kQk;
      const bool there = row < count_ && column < a_.shape.qk_dim;
      s_.q[row][column] = RoundedBf16(there ? Query(row)[column] : 0.0f);
    }
    if (threadIdx.x < kSubBlock) s_.not_finite[threadIdx.x] = 0;
  }

  // Keys [base, base + kSubBlock) join `softmax` (of rows lane / 4 and + 8 of the warp) and
  // `values`. All threads of the block.
  __device__ void Step(int base, Softmax (&softmax)[2], Values& values) {
    __syncthreads();
    LoadKeys(base);
    __syncthreads();
    float scores[2][4] = {};
    Score(scores);
    Mask(base, scores);
    float top[2];
    MaxOfRows(scores, top);
    __syncthreads();
    float factor[2];
    SY_UNROLL
    for (int h = 0; h < 2; ++h) {
      float max = softmax[h].max;
      SY_UNROLL
      for (int w = 0; w < kColumnWarps; ++w) {
        const float other = s_.max[w][WarpRow(h)];
        max = other > max ? other : max;
      }
      factor[h] = Rescale(softmax[h].max, max);
      softmax[h].max = max;
    }
    Weigh(base, scores, softmax);
    __syncthreads();
    if (threadIdx.x < kSubBlock) s_.not_finite[threadIdx.x] = 0;
    SY_UNROLL
    for (int h = 0; h < 2; ++h) {
      float sum = s_.sum[0][WarpRow(h)];
      SY_UNROLL
      for (int w = 1; w < kColumnWarps; ++w) sum = sum + s_.sum[w][WarpRow(h)];
      softmax[h].sum = softmax[h].sum * factor[h] + sum;
    }
    SY_UNROLL
    for (int j = 0; j < kPieces; ++j) {
      SY_UNROLL
      for (int c = 0; c < 4; ++c) values[j][c] = values[j][c] * factor[c / 2];
    }
    AddValues(values);
  }

  // Calls store(global row, query head, column, h, j, c) for every value that this thread holds.
  template <typename F>
  __device__ void ForValues(F store) const {
    SY_UNROLL
    for (int h = 0; h < 2; ++h) {
      const int row = WarpRow(h);
      if (row >= count_) continue;
      SY_UNROLL
      for (int j = 0; j < kPieces; ++j) {
        SY_UNROLL
        for (int c = 0; c < 2; ++c) {
          const int column = FirstColumn() + j * 8 + Lane() % 4 * 2 + c;
          if (column < a_.shape.v_dim) store(Row(row), Head(row), column, h, j, 2 * h + c);
        }
      }
    }
  }
  // The lanes that hold a row's statistics for the block: one for each row.
  __device__ bool Speaks(int h) const {
    return WarpIndex() % kColumnWarps == 0 && Lane() % 4 == 0 && WarpRow(h) < count_;
  }
  __device__ int WarpRow(int h) const {
    return WarpIndex() / kColumnWarps * 16 + h * 8 + Lane() / 4;
  }
  __device__ int Row(int row) const { return sequence_.first_row + (first_ + row) / sharing_; }
  __device__ int Head(int row) const { return head_ * sharing_ + (first_ + row) % sharing_; }

 private:
  __device__ int Position(int row) const {
    return sequence_.first_position + (first_ + row) / sharing_;
  }
  __device__ const float* Query(int row) const {
    return a_.q.data + Row(row) * a_.q.stride + static_cast<int64_t>(Head(row)) * a_.shape.qk_dim;
  }
  __device__ int FirstColumn() const { return WarpIndex() % kColumnWarps * (kV / kColumnWarps); }

  // 8 elements at `at`, zeros from `dim` on and where there is no key.
  __device__ uint4 Chunk(size_t at, int column, int dim, bool there) const {
    const Bf16* from = reinterpret_cast<const Bf16*>(a_.base) + at + column;
    if (there && column + 8 <= dim && (reinterpret_cast<uintptr_t>(from) & 15) == 0) {
      return *reinterpret_cast<const uint4*>(from);
    }
    uint32_t words[4] = {};
    SY_UNROLL
    for (int i = 0; i < 8; ++i) {
      if (there && column + i < dim) words[i / 2] |= uint32_t{from[i].bits} << (i % 2 * 16);
    }
    return {words[0], words[1], words[2], words[3]};
  }

  // The chunk with what is not finite as 0; says whether there was any.
  __device__ static bool Clean(uint4& chunk) {
    uint32_t* words[4] = {&chunk.x, &chunk.y, &chunk.z, &chunk.w};
    bool any = false;
    SY_UNROLL
    for (int i = 0; i < 4; ++i) {
      if ((*words[i] & 0x7f80u) == 0x7f80u) *words[i] &= 0xffff0000u, any = true;
      if ((*words[i] & 0x7f800000u) == 0x7f800000u) *words[i] &= 0x0000ffffu, any = true;
    }
    return any;
  }

  template <int kDim, bool kValue>
  __device__ void LoadRows(int base, int dim, Bf16* to) {
    constexpr int kChunks = kDim / 8;
    for (int i = static_cast<int>(threadIdx.x); i < kSubBlock * kChunks; i += kAttentionThreads) {
      const int key = i / kChunks, column = i % kChunks * 8;
      const bool there = base + key < end_;
      const size_t at = there ? ElementOf(a_.kv, table_, head_, base + key, kValue) : 0;
      uint4 chunk = Chunk(at, column, dim, there);
      // Several threads may say so: the same word to the same place.
      const bool is_value = kValue || (kValuesInKeys && column < kV);
      if (is_value && Clean(chunk)) s_.not_finite[key] = 1;
      *reinterpret_cast<uint4*>(to + key * (kDim + 8) + column) = chunk;
    }
  }

  __device__ void LoadKeys(int base) {
    LoadRows<kQk, false>(base, a_.shape.qk_dim, s_.k[0]);
    if (!kValuesInKeys) LoadRows<kV, true>(base, a_.shape.v_dim, s_.v[0]);
  }

  __device__ void Score(float (&scores)[2][4]) const {
    const int lane = Lane(), warp = WarpIndex();
    const Bf16* rows = &s_.q[warp / kColumnWarps * 16 + lane % 16][lane / 16 * 8];
    const Bf16* keys = &s_.k[warp % kColumnWarps * 16 + lane % 8 + lane / 16 * 8][lane / 8 % 2 * 8];
    SY_UNROLL
    for (int k = 0; k < kQk; k += 16) {
      uint32_t a[4], b[4];
      LoadMatrices(a, rows + k);
      LoadMatrices(b, keys + k);
      Mma(scores[0], a, b[0], b[1]);
      Mma(scores[1], a, b[2], b[3]);
    }
  }

  __device__ int KeyOf(int j, int c) const {
    return WarpIndex() % kColumnWarps * 16 + j * 8 + Lane() % 4 * 2 + c % 2;
  }
  __device__ bool Sees(int row, int position) const {
    if (row >= count_) return false;
    const KeyRange keys = KeysOf(a_.shape, Position(row));
    return position >= keys.begin && position < keys.end;
  }

  __device__ void Mask(int base, float (&scores)[2][4]) const {
    SY_UNROLL
    for (int j = 0; j < 2; ++j) {
      SY_UNROLL
      for (int c = 0; c < 4; ++c) {
        const bool sees = Sees(WarpRow(c / 2), base + KeyOf(j, c));
        scores[j][c] = sees ? scores[j][c] * a_.shape.scale : -INFINITY;
      }
    }
  }

  __device__ void MaxOfRows(const float (&scores)[2][4], float (&top)[2]) {
    SY_UNROLL
    for (int h = 0; h < 2; ++h) {
      top[h] = -INFINITY;
      SY_UNROLL
      for (int i = 0; i < 4; ++i) {
        const float s = scores[i / 2][2 * h + i % 2];
        top[h] = s > top[h] ? s : top[h];
      }
      SY_UNROLL
      for (int mask = 1; mask <= 2; mask *= 2) {
        const float other = __shfl_xor_sync(kAllLanes, top[h], mask);
        top[h] = other > top[h] ? other : top[h];
      }
      if (Lane() % 4 == 0) s_.max[WarpIndex() % kColumnWarps][WarpRow(h)] = top[h];
    }
  }

  // Scores become weights, in shared memory as BF16, and their FP32 sums.
  __device__ void Weigh(int base, const float (&scores)[2][4], const Softmax (&softmax)[2]) {
    SY_UNROLL
    for (int h = 0; h < 2; ++h) {
      float sum = 0;
      SY_UNROLL
      for (int j = 0; j < 2; ++j) {
        float weight[2];
        SY_UNROLL
        for (int c = 0; c < 2; ++c) {
          const int key = KeyOf(j, c);
          const float score = scores[j][2 * h + c];
          const bool sees = Sees(WarpRow(h), base + key);
          weight[c] = sees ? Exp(score - softmax[h].max) : 0.0f;
          if (sees && s_.not_finite[key] != 0) weight[c] = NAN;
          sum = sum + weight[c];
        }
        *reinterpret_cast<uint32_t*>(&s_.p[WarpRow(h)][KeyOf(j, 0)]) =
            PackBf16(weight[0], weight[1]);
      }
      SY_UNROLL
      for (int mask = 1; mask <= 2; mask *= 2) sum = sum + __shfl_xor_sync(kAllLanes, sum, mask);
      if (Lane() % 4 == 0) s_.sum[WarpIndex() % kColumnWarps][WarpRow(h)] = sum;
    }
  }

  __device__ void AddValues(Values& values) const {
    constexpr int kStride = (kValuesInKeys ? kQk : kV) + 8;
    const int lane = Lane();
    const Bf16* weights = &s_.p[WarpIndex() / kColumnWarps * 16 + lane % 16][lane / 16 * 8];
    const Bf16* v =
        (kValuesInKeys ? s_.k[0] : s_.v[0]) + lane % 16 * kStride + lane / 16 * 8 + FirstColumn();
    SY_UNROLL
    for (int k = 0; k < kSubBlock; k += 16) {
      uint32_t a[4];
      LoadMatrices(a, weights + k);
      SY_UNROLL
      for (int j = 0; j < kPieces; j += 2) {
        uint32_t b[4];
        LoadMatricesTransposed(b, v + k * kStride + j * 8);
        Mma(values[j], a, b[0], b[1]);
        Mma(values[j + 1], a, b[2], b[3]);
      }
    }
  }

  const AttentionArguments& a_;
  Shared& s_;
  const DeviceSequence sequence_;
  const int32_t* table_;
  int head_, first_, sharing_, count_, begin_, end_;
};

}  // namespace switchyard::cuda
