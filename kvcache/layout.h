// kvcache/layout.h: the bytes of the KV cache: which element lies where in a block, and the
// identity that two ranks compare before one sends KV to the other.
//
// Letters: L layers, B blocks, bt tokens per block (16), G kv heads, D head size, C latent width, R
// rope width.
//   GQA block of a layer: K [G][bt][D], then V [G][bt][Dv]
//   MLA block of a layer: [bt][C + R]: the normed latent, then the rotated shared key; values are
//   the first C columns (DeepSeek-V2, section 2.1.2).
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "absl/status/statusor.h"
#include "common/bf16.h"
#include "common/ids.h"
#include "kernels/attention.h"

namespace switchyard {

struct KvLayout {
  enum class Kind { kGqa, kMla };
  Kind kind = Kind::kGqa;
  int layers = 0;
  int kv_heads = 1;  // 1 for MLA
  int k_dim = 0;     // D, or C + R
  int v_dim = 0;     // Dv, or C (inside the key) for MLA
  int block_tokens = 16;
  DType dtype = DType::kBfloat16;

  // Bytes of one block of one layer, and of one block over all layers.
  size_t BlockBytes() const;
  size_t BlockBytesAllLayers() const { return BlockBytes() * static_cast<size_t>(layers); }
  int BlocksFor(int tokens) const { return tokens / block_tokens + (tokens % block_tokens != 0); }
  KvAddressing Addressing() const;
  // E.g. "mla:bfloat16:bt16:k80:v64:g1:L6:v1": equal ids mean equal bytes for equal tokens.
  std::string LayoutId() const;
  friend bool operator==(const KvLayout&, const KvLayout&) = default;
};

// The same blocks in the memory of a device, where a model computes on one. The host's bytes are
// then only those that came from another rank or go to one; docs/cuda.md.
class KvDevice {
 public:
  virtual ~KvDevice() = default;
  // The host's bytes of these blocks, all layers, are the newer ones: whoever computes next with
  // them fetches them. Called by the engine thread.
  virtual void TakeFromHost(std::span<const BlockId> blocks) = 0;
  // [B], on the host: the checksum (kvtransfer/wire.h) of each block of a layer as its writer had
  // it before it came here: the device's memory, or a peer, whose hand-off writes it beside the
  // bytes. Read and written when the block's bytes on the host are.
  virtual uint64_t* Checksums(int layer) = 0;
};

// The memory of one rank's cache: [L][B][BlockBytes()]. Written by the engine thread (its own
// tokens) and by the KV I/O thread (only blocks leased to a hand-off); which of the two owns a
// block is the block pool's business. Zero at the start; a block that nobody wrote costs no memory.
class KvStorage {
 public:
  // Errors: kInvalidArgument for a layout that is none or a size past 63 bits; kResourceExhausted.
  static absl::StatusOr<KvStorage> Create(const KvLayout& layout, int blocks);
  // CHECKs what Create refuses.
  KvStorage(const KvLayout& layout, int blocks);
  const KvLayout& layout() const { return layout_; }
  int blocks() const { return blocks_; }
  std::byte* Layer(int layer) const;
  std::byte* Block(int layer, int32_t block) const;
  // Null where the host computes.
  KvDevice* device() const { return device_.get(); }
  void Attach(std::unique_ptr<KvDevice> device) { device_ = std::move(device); }

 private:
  struct Unmap {
    size_t bytes = 0;
    void operator()(std::byte* p) const;
  };
  using Mapping = std::unique_ptr<std::byte, Unmap>;
  KvStorage(const KvLayout& layout, int blocks, Mapping bytes);

  KvLayout layout_;
  int blocks_;
  size_t block_bytes_;
  Mapping bytes_;
  std::unique_ptr<KvDevice> device_;  // goes first: it may have pinned the bytes
};

}  // namespace switchyard
