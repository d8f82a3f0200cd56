// model/cuda/device_kv.h: the KV cache in the memory of a device, in the bytes of kvcache/layout.h,
// beside the host's image of it. Hand-offs read and write the image, so that frames, fences and
// checksums are those of every other rank; what they need of it is copied layer by layer beside the
// computation. Owned by the engine thread.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "common/cuda/device.h"
#include "kvcache/layout.h"
#include "model/cuda/kv_image.h"

namespace switchyard::cuda {

class DeviceKv final : public KvDevice {
 public:
  // `host` must outlive it: whose device() it becomes. Errors: kResourceExhausted.
  static absl::StatusOr<std::unique_ptr<DeviceKv>> Create(const KvStorage& host);
  ~DeviceKv() override;

  void TakeFromHost(std::span<const BlockId> blocks) override { image_.HostWrote(blocks); }

  // Base of one layer.
  std::byte* Layer(int layer) const { return memory_.data() + layer * layer_bytes_; }
  const KvAddressing& addressing() const { return addressing_; }

  KvImage& image() { return image_; }
  // Copies of one layer's blocks on `stream`.
  absl::Status Upload(int layer, std::span<const BlockRun> runs, const OwnedStream& stream);
  absl::Status Download(int layer, std::span<const BlockRun> runs, const OwnedStream& stream);

 private:
  explicit DeviceKv(const KvStorage& host);
  // Calls copy(offset, bytes) for the parts of `runs` that lie in one pinned piece of the image
  // each.
  template <typename Copy>
  absl::Status ForParts(int layer, std::span<const BlockRun> runs, Copy copy);

  std::byte* const host_;  // the image's first byte
  const KvAddressing addressing_;
  const size_t block_bytes_, layer_bytes_, bytes_;
  DeviceBuffer memory_;
  KvImage image_;
  std::vector<bool> pinned_;  // [pieces of the image]
};

}  // namespace switchyard::cuda
