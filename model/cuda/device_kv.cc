#include "model/cuda/device_kv.h"

#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "kernels/cuda/blocks.h"

namespace switchyard::cuda {
namespace {

// The image is pinned in pieces, when they are first needed: a decode rank that prefills itself
// needs none.
constexpr size_t kPieceBytes = size_t{16} << 20, kPageBytes = 4096;

constexpr size_t Pages(size_t bytes) { return (bytes + kPageBytes - 1) / kPageBytes * kPageBytes; }

}  // namespace

DeviceKv::DeviceKv(const KvStorage& host)
    : host_(host.blocks() > 0 ? host.Layer(0) : nullptr),
      addressing_(host.layout().Addressing()),
      layers_(host.layout().layers),
      kv_heads_(host.layout().kv_heads),
      blocks_(static_cast<size_t>(host.blocks())),
      block_bytes_(host.layout().BlockBytes()),
      layer_bytes_(block_bytes_ * blocks_),
      bytes_(layer_bytes_ * static_cast<size_t>(host.layout().layers)),
      image_(host.blocks(), host.layout().block_tokens),
      pinned_((bytes_ + kPieceBytes - 1) / kPieceBytes, false) {}

absl::StatusOr<std::unique_ptr<DeviceKv>> DeviceKv::Create(const KvStorage& host) {
  std::unique_ptr<DeviceKv> kv(new DeviceKv(host));
  if (static_cast<int64_t>(kv->block_bytes_) <= kChecksumBytesOver) {
    return absl::UnimplementedError(
        absl::StrCat("device cuda: --block-size ", host.layout().block_tokens, ": a KV block has ",
                     kv->block_bytes_, " bytes, more than ", kChecksumBytesOver, " are wanted"));
  }
  ASSIGN_OR_RETURN(kv->memory_, DeviceBuffer::Create(kv->bytes_));
  const size_t sums = 2 * sizeof(uint64_t) * static_cast<size_t>(kv->layers_) * kv->blocks_;
  ASSIGN_OR_RETURN(kv->sums_, PinnedBuffer::Create(sums));
  if (sums > 0) std::memset(kv->sums_.data(), 0, sums);
  return kv;
}

DeviceKv::~DeviceKv() {
  for (size_t i = 0; i < pinned_.size(); ++i) {
    if (pinned_[i]) Unpin(host_ + i * kPieceBytes);
  }
}

template <typename Copy>
absl::Status DeviceKv::ForParts(int layer, std::span<const BlockRun> runs, Copy copy) {
  for (const BlockRun& run : runs) {
    const ByteRange bytes{layer * layer_bytes_ + run.begin * block_bytes_,
                          run.count * block_bytes_};
    for (const ByteRange& part : CutAt(kPieceBytes, bytes)) {
      const size_t piece = part.begin / kPieceBytes, at = piece * kPieceBytes;
      if (!pinned_[piece]) {
        RETURN_IF_ERROR(Pin(host_ + at, Pages(std::min(kPieceBytes, bytes_ - at))));
        pinned_[piece] = true;
      }
      RETURN_IF_ERROR(copy(part.begin, part.count));
    }
  }
  return absl::OkStatus();
}

absl::Status DeviceKv::Hash(int layer, std::span<const BlockRun> runs, uint64_t* sums,
                            const OwnedStream& stream) {
  for (const BlockRun& run : runs) {
    RETURN_IF_ERROR(BlockChecksums(stream.get(), Layer(layer) + run.begin * block_bytes_,
                                   static_cast<int64_t>(block_bytes_), run.count,
                                   sums + run.begin));
  }
  return absl::OkStatus();
}

absl::Status DeviceKv::Upload(int layer, std::span<const BlockRun> runs,
                              const OwnedStream& stream) {
  RETURN_IF_ERROR(ForParts(layer, runs, [&](size_t at, size_t bytes) {
    return CopyAsync(memory_.data() + at, host_ + at, bytes, stream);
  }));
  return Hash(layer, runs, Uploaded(layer), stream);
}

absl::Status DeviceKv::CheckUploads(std::span<const BlockRun> runs) {
  for (int l = 0; l < layers_; ++l) {
    for (const BlockRun& run : runs) {
      for (int32_t b = run.begin; b < run.begin + run.count; ++b) {
        if (Uploaded(l)[b] == Checksums(l)[b]) continue;
        return absl::DataLossError(
            absl::StrCat("KV of layer ", l, ", block ", b,
                         ": the bytes on the device are not those that were handed off"));
      }
    }
  }
  return absl::OkStatus();
}

absl::Status DeviceKv::Clear(int layer, std::span<const BlockTail> tails,
                             const OwnedStream& stream) {
  for (const BlockTail& tail : tails) {
    RETURN_IF_ERROR(ClearRows(stream.get(), addressing_, kv_heads_, tail.first_row,
                              Layer(layer) + tail.block * block_bytes_));
  }
  return absl::OkStatus();
}

absl::Status DeviceKv::Download(int layer, std::span<const BlockRun> runs,
                                const OwnedStream& stream) {
  RETURN_IF_ERROR(Hash(layer, runs, Checksums(layer), stream));
  return ForParts(layer, runs, [&](size_t at, size_t bytes) {
    return CopyAsync(host_ + at, memory_.data() + at, bytes, stream);
  });
}

}  // namespace switchyard::cuda
