// bench/kv_ways.h: the ways in which the blocks of one KV cache get into another process's: the
// lanes as they serve, and what they are measured against. Both caches are paged: blocks lie in an
// order that has nothing to do with the prompt's.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/ids.h"
#include "kvcache/layout.h"

namespace switchyard {

// The same on both ends.
struct KvPages {
  KvLayout layout;
  std::vector<BlockId> from, to;  // [B]; where block i of the prompt lies
  size_t bytes() const { return layout.BlockBytesAllLayers() * from.size(); }
};

// One end of one way. Both ends call the same methods in the same order.
class KvWay {
 public:
  virtual ~KvWay() = default;
  // Moves every block of every layer. On the sender's end: everything lies in the receiver's cache.
  virtual absl::Status Move() = 0;
  // The receiver's cache, [L][B][bytes of a block]; null on the sender's end.
  virtual const std::byte* received() const { return nullptr; }
};

//   "shm", "tcp"           the lanes of kvtransfer, with generations, checksums and commit
//   "raw shm"              non-temporal stores into the receiver's blocks, and a bell at the end:
//                          no fence, no checksum, no ring. For comparison only
//   "put posix", "put tcp" a ucp_put for each block
//   "socket"               the same bytes in one piece over one TCP connection
// `kv`: the sender's cache; not used on the other end. `fd`: a socket to the other end, which makes
// the same way at the same time.
absl::StatusOr<std::unique_ptr<KvWay>> MakeKvWay(const std::string& name, bool sender, int fd,
                                                 const KvPages& pages, KvStorage* kv);

}  // namespace switchyard
