#include "model/cuda/device_kv.h"

#include <algorithm>

#include "common/status_macros.h"

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
      block_bytes_(host.layout().BlockBytes()),
      layer_bytes_(block_bytes_ * static_cast<size_t>(host.blocks())),
      bytes_(layer_bytes_ * static_cast<size_t>(host.layout().layers)),
      image_(host.blocks(), host.layout().block_tokens),
      pinned_((bytes_ + kPieceBytes - 1) / kPieceBytes, false) {}

absl::StatusOr<std::unique_ptr<DeviceKv>> DeviceKv::Create(const KvStorage& host) {
  std::unique_ptr<DeviceKv> kv(new DeviceKv(host));
  ASSIGN_OR_RETURN(kv->memory_, DeviceBuffer::Create(kv->bytes_));
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

absl::Status DeviceKv::Upload(int layer, std::span<const BlockRun> runs,
                              const OwnedStream& stream) {
  return ForParts(layer, runs, [&](size_t at, size_t bytes) {
    return CopyAsync(memory_.data() + at, host_ + at, bytes, stream);
  });
}

absl::Status DeviceKv::Download(int layer, std::span<const BlockRun> runs,
                                const OwnedStream& stream) {
  return ForParts(layer, runs, [&](size_t at, size_t bytes) {
    return CopyAsync(host_ + at, memory_.data() + at, bytes, stream);
  });
}

}  // namespace switchyard::cuda
