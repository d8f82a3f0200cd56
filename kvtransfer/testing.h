// kvtransfer/testing.h: what the tests of the KV transfer share: blocking calls
// and recognisable blocks.
#pragma once

#include <chrono>
#include <future>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "common/clock.h"
#include "common/testing/other_process.h"
#include "kvtransfer/kv_transfer.h"

namespace switchyard::testing {

// 2,560 bytes a block: MLA of a small model.
KvLayout TinyLayout(int layers);
// 32 KiB a block: GQA of a middling one.
KvLayout LargeLayout(int layers);

// The bytes of prompt block `index` of `layer` under `seed`, written to or compared with a block.
void FillBlock(const KvStorage& kv, int layer, BlockId block, uint64_t seed, int index);
bool BlockHolds(const KvStorage& kv, int layer, BlockId block, uint64_t seed, int index);

// Blocks 0 … n - 1 in an order that the seed decides.
std::vector<BlockId> ShuffledBlocks(int n, uint64_t seed);

// Calls `start(done)` and waits for done's value. kDeadlineExceeded after 30 s: a callback is lost.
template <typename T, typename Start>
T Await(Start start) {
  auto promise = std::make_shared<std::promise<T>>();
  std::future<T> future = promise->get_future();
  start([promise](T value) { promise->set_value(std::move(value)); });
  if (future.wait_for(std::chrono::seconds(30)) == std::future_status::ready) return future.get();
  if constexpr (std::is_constructible_v<T, absl::Status>) {
    return absl::DeadlineExceededError("the callback never came");
  } else {
    std::abort();
  }
}

absl::StatusOr<KvHelloAnswer> Hello(KvReceiver* receiver, KvHello hello,
                                    const std::string& numerics_id = "n");
absl::StatusOr<uint64_t> Open(KvReceiver* receiver, uint64_t peer_token, const KvTarget& target);
absl::StatusOr<KvTarget> Commit(KvReceiver* receiver, uint64_t peer_token, uint64_t session,
                                uint64_t digest, absl::Duration wait = absl::Seconds(10));

using SendFuture = std::future<absl::StatusOr<KvSendResult>>;
SendFuture Prepare(KvSender* sender, const AttemptKey& key, int blocks);
// All layers and blocks of the prompt, in pieces of up to `piece` blocks, in the seed's order.
void PushAll(KvSender* sender, const AttemptKey& key, int layers,
             const std::vector<BlockId>& blocks, int piece, uint64_t seed);
absl::StatusOr<KvSendResult> Await(SendFuture future);

// KvHello and its answer over the socket of an OtherProcess.
void SendHello(int fd, const KvHello& hello);
KvHello ReceiveHello(int fd);
void SendAnswer(int fd, const KvHelloAnswer& answer);
KvHelloAnswer ReceiveAnswer(int fd);

}  // namespace switchyard::testing
