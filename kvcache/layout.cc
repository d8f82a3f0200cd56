#include "kvcache/layout.h"

#include <sys/mman.h>

#include <cerrno>
#include <cstring>
#include <limits>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/checked_math.h"
#include "common/status_macros.h"

namespace switchyard {
namespace {

// Elements of one block of one layer.
std::optional<uint64_t> BlockElements(const KvLayout& l) {
  const auto u = [](int v) { return static_cast<uint64_t>(v); };
  const uint64_t per_token = l.kind == KvLayout::Kind::kMla ? u(l.k_dim) : u(l.k_dim) + u(l.v_dim);
  return CheckedProduct({u(l.kv_heads), u(l.block_tokens), per_token});
}

// Bytes of the whole cache, or which field is wrong.
absl::StatusOr<size_t> StorageBytes(const KvLayout& l, int blocks) {
  if (l.layers < 1 || l.kv_heads < 1 || l.k_dim < 1 || l.v_dim < 1 || l.block_tokens < 1 ||
      blocks < 0 || (l.kind == KvLayout::Kind::kMla && (l.kv_heads != 1 || l.v_dim > l.k_dim))) {
    return absl::InvalidArgumentError(
        absl::StrCat("KV layout ", l.LayoutId(), " with ", blocks, " blocks is not a layout"));
  }
  const auto elements = BlockElements(l);
  const auto bytes =
      elements ? CheckedProduct({*elements, SizeOf(l.dtype), static_cast<uint64_t>(l.layers),
                                 static_cast<uint64_t>(blocks)})
               : std::nullopt;
  if (!bytes || *bytes > static_cast<uint64_t>(std::numeric_limits<ptrdiff_t>::max())) {
    return absl::InvalidArgumentError(absl::StrCat("KV layout ", l.LayoutId(), " with ", blocks,
                                                   " blocks does not fit 63 bits of bytes"));
  }
  return static_cast<size_t>(*bytes);
}

}  // namespace

size_t KvLayout::BlockBytes() const {
  const auto elements = BlockElements(*this);
  SY_CHECK(elements.has_value());
  return static_cast<size_t>(*elements) * SizeOf(dtype);
}

KvAddressing KvLayout::Addressing() const {
  const size_t bt = static_cast<size_t>(block_tokens), k = static_cast<size_t>(k_dim);
  const size_t v = static_cast<size_t>(v_dim), heads = static_cast<size_t>(kv_heads);
  KvAddressing a;
  a.dtype = dtype;
  a.block_tokens = block_tokens;
  a.block_stride = BlockBytes() / SizeOf(dtype);
  a.k_head_stride = bt * k;
  a.k_token_stride = k;
  if (kind == Kind::kMla) {  // the values are the first columns of the keys
    a.v_head_stride = a.k_head_stride;
    a.v_token_stride = a.k_token_stride;
  } else {
    a.v_offset = heads * bt * k;
    a.v_head_stride = bt * v;
    a.v_token_stride = v;
  }
  return a;
}

std::string KvLayout::LayoutId() const {
  const auto name = Name(dtype);
  return absl::StrCat(
      kind == Kind::kMla ? "mla:" : "gqa:", absl::string_view(name.data(), name.size()), ":bt",
      block_tokens, ":k", k_dim, ":v", v_dim, ":g", kv_heads, ":L", layers, ":v1");
}

void KvStorage::Unmap::operator()(std::byte* p) const {
  if (p != nullptr) munmap(p, bytes);
}

absl::StatusOr<KvStorage> KvStorage::Create(const KvLayout& layout, int blocks) {
  ASSIGN_OR_RETURN(const size_t bytes, StorageBytes(layout, blocks));
  if (bytes == 0) return KvStorage(layout, blocks, Mapping(nullptr, Unmap{0}));
  // Untouched blocks cost nothing: a page is backed when it is first written.
  void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) {
    return absl::ResourceExhaustedError(absl::StrCat("no memory for ", blocks, " KV blocks (",
                                                     bytes, " bytes): ", std::strerror(errno)));
  }
  // Attention reads the cache in short runs: with small pages it would walk a page table for each.
  // Advice only.
  madvise(p, bytes, MADV_HUGEPAGE);
  return KvStorage(layout, blocks, Mapping(static_cast<std::byte*>(p), Unmap{bytes}));
}

KvStorage::KvStorage(const KvLayout& layout, int blocks)
    : KvStorage([&] {
        absl::StatusOr<KvStorage> s = Create(layout, blocks);
        SY_CHECK_MSG(s.ok(), std::string(s.status().message()));
        return *std::move(s);
      }()) {}

KvStorage::KvStorage(const KvLayout& layout, int blocks, Mapping bytes)
    : layout_(layout),
      blocks_(blocks),
      block_bytes_(layout.BlockBytes()),
      bytes_(std::move(bytes)) {}

std::byte* KvStorage::Layer(int layer) const {
  SY_CHECK(layer >= 0 && layer < layout_.layers);
  return bytes_.get() + static_cast<size_t>(layer) * static_cast<size_t>(blocks_) * block_bytes_;
}

std::byte* KvStorage::Block(int layer, int32_t block) const {
  SY_CHECK(block >= 0 && block < blocks_);
  return Layer(layer) + static_cast<size_t>(block) * block_bytes_;
}

}  // namespace switchyard
