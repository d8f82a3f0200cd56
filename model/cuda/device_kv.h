// model/cuda/device_kv.h: the KV cache in the memory of a device, in the bytes of kvcache/layout.h,
// beside the host's image of it. Hand-offs read and write the image, so that frames and fences are
// those of every other rank; what they need of it is copied layer by layer beside the computation.
// Checksums are the device's: of its own bytes before they are copied, and of others' after.
// Owned by the engine thread.
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
  // `host` must outlive it: whose device() it becomes. Errors: kResourceExhausted; kUnimplemented
  // for blocks of too few bytes.
  static absl::StatusOr<std::unique_ptr<DeviceKv>> Create(const KvStorage& host);
  ~DeviceKv() override;

  void TakeFromHost(std::span<const BlockId> blocks) override { image_.HostWrote(blocks); }
  uint64_t* Checksums(int layer) override { return sums_.as<uint64_t>() + layer * blocks_; }

  // Base of one layer.
  std::byte* Layer(int layer) const { return memory_.data() + layer * layer_bytes_; }
  const KvAddressing& addressing() const { return addressing_; }

  KvImage& image() { return image_; }
  // Copies of one layer's blocks on `stream`, and their checksums on the device. What was uploaded
  // is compared by CheckUploads, once the stream has passed: kDataLoss names layer and block.
  absl::Status Upload(int layer, std::span<const BlockRun> runs, const OwnedStream& stream);
  absl::Status CheckUploads(std::span<const BlockRun> runs);
  absl::Status Download(int layer, std::span<const BlockRun> runs, const OwnedStream& stream);
  // Zeroes rows that nobody has, before a download: nothing of a block's last owner leaves this
  // rank, and equal prompts have equal bytes.
  absl::Status Clear(int layer, std::span<const BlockTail> tails, const OwnedStream& stream);

 private:
  explicit DeviceKv(const KvStorage& host);
  // Calls copy(offset, bytes) for the parts of `runs` that lie in one pinned piece of the image
  // each.
  template <typename Copy>
  absl::Status ForParts(int layer, std::span<const BlockRun> runs, Copy copy);

  // Of what the device has of one layer's blocks, to `sums` [B].
  absl::Status Hash(int layer, std::span<const BlockRun> runs, uint64_t* sums,
                    const OwnedStream& stream);
  uint64_t* Uploaded(int layer) { return Checksums(layers_ + layer); }

  std::byte* const host_;  // the image's first byte
  const KvAddressing addressing_;
  const int layers_, kv_heads_;
  const size_t blocks_, block_bytes_, layer_bytes_, bytes_;
  DeviceBuffer memory_;
  PinnedBuffer
      sums_;  // [L][B] that writers declare, [L][B] of what was uploaded: the device writes
  KvImage image_;
  std::vector<bool> pinned_;  // [pieces of the image]
};

}  // namespace switchyard::cuda
