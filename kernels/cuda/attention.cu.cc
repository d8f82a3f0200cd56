#include "kernels/cuda/attention.h"

#include "kernels/cuda/attention_tile.cuh"

namespace switchyard::cuda {
namespace {

constexpr int kMergeThreads = 128;

int64_t Segments(const AttentionBatch& b) { return Ceil(b.context_max, kAttentionSegment); }

// Tiles of the sequence with most rows.
__device__ __forceinline__ int TilesOf(const AttentionArguments& a) {
  const int sharing = a.shape.heads / a.shape.kv_heads;
  return (a.batch.rows_max * sharing + kQueryRows - 1) / kQueryRows;
}

// Grid: tiles of all sequences, kv heads, segments (split) or 1.
template <int kQk, int kV, bool kValuesInKeys>
__global__ void __launch_bounds__(kAttentionThreads, 1) AttentionKernel(AttentionArguments a) {
  using Tile = AttentionTile<kQk, kV, kValuesInKeys>;
  const bool split = a.stats != nullptr;
  const int tiles = TilesOf(a);
  const DeviceSequence s = a.batch.sequences[static_cast<int>(blockIdx.x) / tiles];
  const int first = static_cast<int>(blockIdx.x) % tiles * kQueryRows;
  if (first >= s.count * (a.shape.heads / a.shape.kv_heads)) return;
  Tile tile(a, *SharedMemory<typename Tile::Shared>(), s, static_cast<int>(blockIdx.y), first);
  int base = tile.begin() / kSubBlock * kSubBlock, end = tile.end();
  if (split) {
    const int segment = static_cast<int>(blockIdx.z) * kAttentionSegment;
    base = base > segment ? base : segment;
    end = end < segment + kAttentionSegment ? end : segment + kAttentionSegment;
    if (base >= end) return;
  }
  tile.LoadQueries();
  Softmax in_segment[2], all[2];
  typename Tile::Values values = {}, all_values = {};
  for (; base < end; base += kSubBlock) {
    tile.Step(base, in_segment, values);
    if (split || ((base + kSubBlock) % kAttentionSegment != 0 && base + kSubBlock < end)) continue;
    const MergeFactors factors[2] = {Merge(all[0], in_segment[0]), Merge(all[1], in_segment[1])};
    SY_UNROLL
    for (int j = 0; j < Tile::kPieces; ++j) {
      SY_UNROLL
      for (int c = 0; c < 4; ++c) {
        all_values[j][c] = Merged(all_values[j][c], values[j][c], factors[c / 2]);
        values[j][c] = 0;
      }
    }
    in_segment[0] = in_segment[1] = Softmax();
  }
  if (!split) {
    tile.ForValues([&](int row, int head, int column, int h, int j, int c) {
      a.out.data[row * a.out.stride + static_cast<int64_t>(head) * a.shape.v_dim + column] =
          Normalized(all_values[j][c], all[h].sum);
    });
    return;
  }
  const int64_t plane = static_cast<int64_t>(a.q.rows) * a.shape.heads * blockIdx.z;
  tile.ForValues([&](int row, int head, int column, int, int j, int c) {
    const int64_t pair = plane + static_cast<int64_t>(row) * a.shape.heads + head;
    a.values[pair * a.shape.v_dim + column] = values[j][c];
  });
  for (int h = 0; h < 2; ++h) {
    if (!tile.Speaks(h)) continue;
    const int row = tile.WarpRow(h);
    const int64_t pair =
        plane + static_cast<int64_t>(tile.Row(row)) * a.shape.heads + tile.Head(row);
    a.stats[2 * pair] = in_segment[h].max;
    a.stats[2 * pair + 1] = in_segment[h].sum;
  }
}

// The segments of one row and head, in ascending order. Grid: rows of all sequences, heads.
__global__ void __launch_bounds__(kMergeThreads) MergeKernel(AttentionArguments a) {
  const DeviceSequence s = a.batch.sequences[static_cast<int>(blockIdx.x) / a.batch.rows_max];
  const int token = static_cast<int>(blockIdx.x) % a.batch.rows_max;
  if (token >= s.count) return;
  const int head = static_cast<int>(blockIdx.y);
  const int64_t pair = static_cast<int64_t>(s.first_row + token) * a.shape.heads + head;
  const int64_t pairs = static_cast<int64_t>(a.q.rows) * a.shape.heads;
  const KeyRange keys = KeysOf(a.shape, s.first_position + token);
  float* out = a.out.data + (s.first_row + token) * a.out.stride +
               static_cast<int64_t>(head) * a.shape.v_dim;
  for (int column = static_cast<int>(threadIdx.x); column < a.shape.v_dim;
       column += kMergeThreads) {
    Softmax all;
    float value = 0;
    for (int i = keys.begin / kAttentionSegment; i * kAttentionSegment < keys.end; ++i) {
      const int64_t at = pairs * i + pair;
      const MergeFactors f = Merge(all, {a.stats[2 * at], a.stats[2 * at + 1]});
      value = Merged(value, a.values[at * a.shape.v_dim + column], f);
    }
    out[column] = Normalized(value, all.sum);
  }
}

template <int kQk, int kV, bool kValuesInKeys>
absl::Status LaunchTiles(Stream stream, const AttentionArguments& a, bool split) {
  const int sharing = a.shape.heads / a.shape.kv_heads;
  const Grid grid{.x = Ceil(int64_t{a.batch.rows_max} * sharing, kQueryRows) * a.batch.count,
                  .y = a.shape.kv_heads,
                  .z = split ? Segments(a.batch) : 1,
                  .threads = kAttentionThreads,
                  .shared_bytes = sizeof(AttentionShared<kQk, kV, kValuesInKeys>)};
  return Launch("PagedAttention", AttentionKernel<kQk, kV, kValuesInKeys>, grid, stream, a);
}

// A kernel for keys and values up to these widths.
struct Tiles {
  int qk, v;
  bool values_in_keys;
  size_t shared_bytes;
  absl::Status (*launch)(Stream, const AttentionArguments&, bool split);
};
template <int kQk, int kV, bool kValuesInKeys>
constexpr Tiles Instance() {
  return {kQk, kV, kValuesInKeys, sizeof(AttentionShared<kQk, kV, kValuesInKeys>),
          LaunchTiles<kQk, kV, kValuesInKeys>};
}

absl::StatusOr<Tiles> TilesFor(const AttentionShape& shape, bool values_in_keys) {
  static constexpr Tiles kAll[] = {Instance<64, 64, false>(), Instance<128, 128, false>(),
                                   Instance<256, 256, false>(), Instance<576, 512, true>()};
  for (const Tiles& t : kAll) {
    if (shape.qk_dim <= t.qk && shape.v_dim <= t.v && (values_in_keys || !t.values_in_keys)) {
      return t;
    }
  }
  return absl::UnimplementedError(
      absl::StrCat("attention on CUDA: keys of ", shape.qk_dim, " and values of ", shape.v_dim,
                   " elements; at most 256 of each, or 576 with the first 512 as values"));
}

absl::Status LaunchWidth(Stream stream, const AttentionArguments& a, bool split) {
  const bool in_keys = a.shape.kv_heads == 1 && a.kv.v_offset == a.kv.k_offset &&
                       a.kv.v_token_stride == a.kv.k_token_stride &&
                       a.shape.v_dim <= a.shape.qk_dim;
  const absl::StatusOr<Tiles> tiles = TilesFor(a.shape, in_keys);
  return tiles.ok() ? tiles->launch(stream, a, split) : tiles.status();
}

template <typename T>
__global__ void __launch_bounds__(kMergeThreads)
    WriteKernel(KvAddressing a, int kv_heads, const int64_t* slots, DeviceMatrix<const float> k,
                DeviceMatrix<const float> v, T* kv) {
  const int64_t row = blockIdx.x, slot = slots[row];
  if (slot < 0) return;
  const size_t block = static_cast<size_t>(slot / a.block_tokens) * a.block_stride;
  const size_t token = static_cast<size_t>(slot % a.block_tokens);
  const int k_dim = k.cols / kv_heads, v_dim = v.cols / kv_heads;
  for (int i = static_cast<int>(threadIdx.x); i < k.cols; i += kMergeThreads) {
    Store(kv + block + a.k_offset + i / k_dim * a.k_head_stride + token * a.k_token_stride +
              i % k_dim,
          k.data[row * k.stride + i]);
  }
  if (v.data == nullptr) return;
  for (int i = static_cast<int>(threadIdx.x); i < v.cols; i += kMergeThreads) {
    Store(kv + block + a.v_offset + i / v_dim * a.v_head_stride + token * a.v_token_stride +
              i % v_dim,
          v.data[row * v.stride + i]);
  }
}

}  // namespace

absl::StatusOr<size_t> AttentionSharedBytes(const AttentionShape& shape, bool values_in_keys,
                                            DType cache) {
  if (cache == DType::kFloat32) return AttentionFloatSharedBytes(shape);
  const absl::StatusOr<Tiles> tiles = TilesFor(shape, values_in_keys);
  if (!tiles.ok()) return tiles.status();
  return tiles->shared_bytes;
}

size_t AttentionWorkspaceBytes(const AttentionShape& shape, const AttentionBatch& batch,
                               int total_rows, bool split) {
  if (!split) return 0;
  return static_cast<size_t>(Segments(batch)) * total_rows * shape.heads * (shape.v_dim + 2) *
         sizeof(float);
}

absl::Status PagedAttention(Stream stream, const AttentionShape& shape,
                            const KvAddressing& addressing, const std::byte* kv,
                            const AttentionBatch& batch, DeviceMatrix<const float> q, bool split,
                            std::byte* workspace, DeviceMatrix<float> out) {
  SY_CHECK_MSG(shape.kv_heads >= 1 && shape.heads % shape.kv_heads == 0, shape.heads, " heads, ",
               shape.kv_heads, " kv heads");
  SY_CHECK_MSG(q.cols == shape.heads * shape.qk_dim && out.cols == shape.heads * shape.v_dim,
               q.cols, " columns of q, ", out.cols, " of out");
  if (batch.count == 0 || batch.rows_max == 0) return absl::OkStatus();
  AttentionArguments a{
      .shape = shape, .kv = addressing, .base = kv, .batch = batch, .q = q, .out = out};
  if (addressing.dtype == DType::kFloat32) return AttentionFloat(stream, a);
  if (!split) return LaunchWidth(stream, a, false);
  SY_CHECK_MSG(workspace != nullptr, "no workspace");
  a.stats = reinterpret_cast<float*>(workspace);
  a.values = a.stats + 2 * Segments(batch) * q.rows * shape.heads;
  if (const absl::Status status = LaunchWidth(stream, a, true); !status.ok()) return status;
  return Launch(
      "PagedAttention, merge", MergeKernel,
      {.x = int64_t{batch.count} * batch.rows_max, .y = shape.heads, .threads = kMergeThreads},
      stream, a);
}

absl::Status WriteKv(Stream stream, const KvAddressing& addressing, int kv_heads,
                     const int64_t* slots, DeviceMatrix<const float> k, DeviceMatrix<const float> v,
                     std::byte* kv) {
  SY_CHECK_MSG(kv_heads >= 1 && k.cols % kv_heads == 0 && v.cols % kv_heads == 0, kv_heads,
               " kv heads of ", k.cols);
  const Grid grid{.x = k.rows, .threads = kMergeThreads};
  return addressing.dtype == DType::kFloat32
             ? Launch("WriteKv", WriteKernel<float>, grid, stream, addressing, kv_heads, slots, k,
                      v, reinterpret_cast<float*>(kv))
             : Launch("WriteKv", WriteKernel<Bf16>, grid, stream, addressing, kv_heads, slots, k, v,
                      reinterpret_cast<Bf16*>(kv));
}

}  // namespace switchyard::cuda
