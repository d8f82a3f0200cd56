// kernels/cuda/attention.h: causal attention over a paged KV cache in device memory: prefill chunks
// and decode rows, GQA and absorbed MLA, by the contract of kernels/attention.h (segments of 512
// keys from position 0, sub-blocks of 64 inside, segments merged in ascending order).
//
// A tile is 32 (token, head) pairs of one sequence and kv head; 8 warps: 2 of rows by 4 of keys and
// value columns; mma.sync m16n8k16, FP32 sums. Whether one block goes through a tile's segments or
// each segment is a block of its own is `split`: the same merge in the same order, so the same
// bits. MLA absorbed is kv_heads = 1 with values that are the first columns of the keys
// (DeepSeek-V2, section 2.1.2): keys are read once. MLA expanded is GQA over expanded keys and
// values.
#pragma once

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/attention.h"
#include "kernels/cuda/matrix.h"

namespace switchyard::cuda {

// One sequence's rows, as AttentionSequence; its block table is tables[table_offset …].
struct DeviceSequence {
  int32_t first_row = 0, count = 0, first_position = 0, table_offset = 0;
};

struct AttentionBatch {
  const DeviceSequence* sequences = nullptr;  // device [count]; count 0 rows: padding
  const int32_t* tables = nullptr;            // device: block tables of all sequences
  int count = 0;
  // Host's bounds on what the device arrays hold; the grid is cut by them, the result is not.
  int rows_max = 1;     // rows of one sequence
  int context_max = 0;  // first_position + count of one sequence
};

// Widths that are instantiated: 64, 128, 256 (qk and v padded to the next), 576 with 512 in the
// keys; others are kUnimplemented. Shared memory that a block takes: 119,056 bytes for 576, less
// than 99 KiB for the others, which every device of 8.0 and later has. `values_in_keys`: the values
// are the first columns of the keys, of one kv head.
absl::StatusOr<size_t> AttentionSharedBytes(const AttentionShape& shape, bool values_in_keys,
                                            DType cache);

// Bytes of workspace that a split call needs; 0 for one that is not split.
size_t AttentionWorkspaceBytes(const AttentionShape& shape, const AttentionBatch& batch,
                               int total_rows, bool split);

// q [T, H·qk_dim], out [T, H·v_dim], FP32, overwritten for every row of every sequence. `kv`: base
// of this layer in device memory. total_rows: of q. Cache bytes past a row's context are never
// used. Prefer split for few rows with long contexts (decode). FP32 caches take a plain kernel, a
// warp for each row and head, and are never split.
absl::Status PagedAttention(Stream stream, const AttentionShape& shape,
                            const KvAddressing& addressing, const std::byte* kv,
                            const AttentionBatch& batch, DeviceMatrix<const float> q, bool split,
                            std::byte* workspace, DeviceMatrix<float> out);

// Writes new keys and values of rows into their blocks (rounded to BF16 in a BF16 cache): row r of
// k [T, G·k_dim] and v [T, G·v_dim] goes to slot slots[r] = block · block_tokens + token; a
// negative slot is padding. v.data null: values lie in the keys (MLA).
absl::Status WriteKv(Stream stream, const KvAddressing& addressing, int kv_heads,
                     const int64_t* slots, DeviceMatrix<const float> k, DeviceMatrix<const float> v,
                     std::byte* kv);

}  // namespace switchyard::cuda
