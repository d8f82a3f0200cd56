#include "model/cuda/kv_image.h"

#include <algorithm>

namespace switchyard::cuda {

std::vector<BlockRun> RunsOf(std::vector<int32_t> blocks) {
  std::sort(blocks.begin(), blocks.end());
  std::vector<BlockRun> runs;
  for (const int32_t b : blocks) {
    if (runs.empty() || b > runs.back().begin + runs.back().count) {
      runs.push_back({b, 1});
    } else if (b == runs.back().begin + runs.back().count) {
      ++runs.back().count;
    }
  }
  return runs;
}

std::vector<ByteRange> CutAt(size_t chunk, ByteRange range) {
  std::vector<ByteRange> parts;
  while (range.count > 0) {
    const size_t room = chunk - range.begin % chunk, count = std::min(room, range.count);
    parts.push_back({range.begin, count});
    range = {range.begin + count, range.count - count};
  }
  return parts;
}

std::vector<BlockTail> TailsOf(std::span<const AttentionSequence> sequences, int block_tokens) {
  std::vector<BlockTail> tails;
  for (const AttentionSequence& s : sequences) {
    const int rows = s.first_position + s.count;
    if (rows % block_tokens != 0) {
      tails.push_back({s.blocks[rows / block_tokens], rows % block_tokens});
    }
  }
  return tails;
}

void KvImage::HostWrote(std::span<const BlockId> blocks) {
  for (const BlockId b : blocks) pending_[b.value()] = true;
}

std::vector<BlockRun> KvImage::TakeUploads(std::span<const AttentionSequence> sequences) {
  std::vector<int32_t> blocks;
  for (const AttentionSequence& s : sequences) {
    for (size_t i = 0; i < s.blocks.size(); ++i) {
      const int32_t b = s.blocks[i];
      if (!pending_[b]) continue;
      pending_[b] = false;
      // Of a block that this sequence only begins, the host has what another has left there.
      if (static_cast<int64_t>(i) * block_tokens_ >= s.first_position) continue;
      current_[b] = true;
      blocks.push_back(b);
    }
  }
  return RunsOf(std::move(blocks));
}

void KvImage::NotUploaded(std::span<const BlockRun> runs) {
  for (const auto& [begin, count] : runs) {
    std::fill_n(pending_.begin() + begin, count, true);
    std::fill_n(current_.begin() + begin, count, false);
  }
}

void KvImage::DeviceWrites(std::span<const AttentionSequence> sequences) {
  for (const AttentionSequence& s : sequences) {
    const int first = s.first_position / block_tokens_;
    const int last = (s.first_position + s.count - 1) / block_tokens_;
    for (int i = first; i <= last; ++i) current_[s.blocks[i]] = false;
  }
}

std::vector<BlockRun> KvImage::TakeDownloads(std::span<const AttentionSequence> sequences) {
  std::vector<int32_t> blocks;
  for (const AttentionSequence& s : sequences) {
    const int last = (s.first_position + s.count - 1) / block_tokens_;
    for (int i = 0; i <= last; ++i) {
      const int32_t b = s.blocks[i];
      if (current_[b]) continue;
      current_[b] = true;
      blocks.push_back(b);
    }
  }
  return RunsOf(std::move(blocks));
}

void KvImage::NotDownloaded(std::span<const BlockRun> runs) {
  for (const auto& [begin, count] : runs) {
    std::fill_n(current_.begin() + begin, count, false);
  }
}

}  // namespace switchyard::cuda
