// model/cuda/kv_image.h: which bytes of the KV are where, in blocks: the device has the cache, the
// host an image of those blocks that come from another rank or go to one. Pure: decides what is
// copied, copies nothing.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "common/ids.h"
#include "kernels/attention.h"

namespace switchyard::cuda {

// Blocks [begin, begin + count).
struct BlockRun {
  int32_t begin = 0, count = 0;
  friend bool operator==(const BlockRun&, const BlockRun&) = default;
};
// `blocks` sorted, without repetitions, neighbours joined.
std::vector<BlockRun> RunsOf(std::vector<int32_t> blocks);

// Bytes [begin, begin + count).
struct ByteRange {
  size_t begin = 0, count = 0;
  friend bool operator==(const ByteRange&, const ByteRange&) = default;
};
// `range` cut where multiples of `chunk` lie: memory that is pinned chunk by chunk is copied so.
std::vector<ByteRange> CutAt(size_t chunk, ByteRange range);

// Rows of a block from `first_row` on that its sequence does not have yet.
struct BlockTail {
  int32_t block = 0, first_row = 0;
  friend bool operator==(const BlockTail&, const BlockTail&) = default;
};
// Of those of `sequences` that end inside a block.
std::vector<BlockTail> TailsOf(std::span<const AttentionSequence> sequences, int block_tokens);

class KvImage {
 public:
  KvImage(int blocks, int block_tokens)
      : block_tokens_(block_tokens), pending_(blocks, false), current_(blocks, false) {}

  // The host's bytes of these are newer than the device's.
  void HostWrote(std::span<const BlockId> blocks);
  // What the device has to fetch before it computes with `sequences`; taken for done.
  std::vector<BlockRun> TakeUploads(std::span<const AttentionSequence> sequences);
  // Takes that back: not all was uploaded.
  void NotUploaded(std::span<const BlockRun> runs);
  // The device writes the rows of `sequences`: the host's bytes of their blocks are old.
  void DeviceWrites(std::span<const AttentionSequence> sequences);
  // What the host has to fetch to have all of these sequences up to their last row; taken for done.
  std::vector<BlockRun> TakeDownloads(std::span<const AttentionSequence> sequences);
  // Takes that back: a step has failed before all was copied.
  void NotDownloaded(std::span<const BlockRun> runs);

 private:
  const int block_tokens_;
  std::vector<bool> pending_;  // [blocks] on the host only
  std::vector<bool> current_;  // [blocks] the host's bytes are the device's
};

}  // namespace switchyard::cuda
