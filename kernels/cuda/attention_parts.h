// kernels/cuda/attention_parts.h: what the attention kernels share: which keys a row attends to,
// where they lie, and how segments are merged.
#pragma once

#include "kernels/cuda/attention.h"
#include "kernels/cuda/mma.h"

namespace switchyard::cuda {

// All that a kernel is given. By value: it is a few hundred bytes of parameters.
struct AttentionArguments {
  AttentionShape shape;
  KvAddressing kv;
  const std::byte* base = nullptr;
  AttentionBatch batch;
  DeviceMatrix<const float> q;
  DeviceMatrix<float> out;
  // Not null: split. [segments][T · H] pairs of (maximum, sum), then [segments][T · H][v_dim] of
  // values.
  float* stats = nullptr;
  float* values = nullptr;
};

// Keys [begin, end) of a row at `position`.
struct KeyRange {
  int begin, end;
};
__device__ __forceinline__ KeyRange KeysOf(const AttentionShape& shape, int position) {
  const int end = position + 1;
  return {shape.window > 0 && end > shape.window ? end - shape.window : 0, end};
}

// Element index of a position's key or value of kv head `head`.
__device__ __forceinline__ size_t ElementOf(const KvAddressing& a, const int32_t* table, int head,
                                            int position, bool value) {
  const size_t block = static_cast<size_t>(table[position / a.block_tokens]) * a.block_stride;
  const size_t token = static_cast<size_t>(position % a.block_tokens);
  return value ? block + a.v_offset + head * a.v_head_stride + token * a.v_token_stride
               : block + a.k_offset + head * a.k_head_stride + token * a.k_token_stride;
}

// An online softmax: the greatest score and the sum of weights relative to it.
struct Softmax {
  float max = -INFINITY, sum = 0;
};

// What sums relative to `from` are multiplied with to be relative to `to` >= from.
__device__ __forceinline__ float Rescale(float from, float to) {
  return from == to ? 1.0f : from == -INFINITY ? 0.0f : Exp(from - to);
}

// The factors with which a segment joins those before it; `all` becomes the softmax of both. A
// segment without keys changes nothing, to the bit.
struct MergeFactors {
  float all = 1, segment = 0;
};
__device__ __forceinline__ MergeFactors Merge(Softmax& all, const Softmax& segment) {
  if (segment.max == -INFINITY) return {};
  const float max = all.max > segment.max ? all.max : segment.max;
  const MergeFactors f{Rescale(all.max, max), Rescale(segment.max, max)};
  all = {max, all.sum * f.all + segment.sum * f.segment};
  return f;
}
__device__ __forceinline__ float Merged(float all, float segment, const MergeFactors& f) {
  return f.segment == 0.0f && f.all == 1.0f ? all : all * f.all + segment * f.segment;
}

// −0 becomes +0: whether a fully masked sub-block was added to it does not show.
__device__ __forceinline__ float Normalized(float value, float sum) { return value / sum + 0.0f; }

absl::Status AttentionFloat(Stream stream, const AttentionArguments& a);
absl::StatusOr<size_t> AttentionFloatSharedBytes(const AttentionShape& shape);

}  // namespace switchyard::cuda
