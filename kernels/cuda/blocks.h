// kernels/cuda/blocks.h: what a hand-off does with whole KV blocks in device memory.
#pragma once

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "kernels/attention.h"
#include "kernels/cuda/matrix.h"

namespace switchyard::cuda {

// A block has to have more bytes: XXH3 mixes fewer in another way, which no real block needs.
inline constexpr int64_t kChecksumBytesOver = 240;

// sums[i] = XXH3, 64 bits, without a seed (xxHash's specification, "XXH3 algorithm") of
// `block_bytes` from blocks + i · block_bytes, i < count: the sums that KV frames carry. A warp for
// each block. `blocks` is 16-byte aligned, block_bytes even; `sums` may be pinned memory of the
// host.
absl::Status BlockChecksums(Stream stream, const std::byte* blocks, int64_t block_bytes, int count,
                            uint64_t* sums);

// Zeroes the rows of one block from `first_row` on. `block` is the block's first byte.
absl::Status ClearRows(Stream stream, const KvAddressing& addressing, int kv_heads, int first_row,
                       std::byte* block);

}  // namespace switchyard::cuda
