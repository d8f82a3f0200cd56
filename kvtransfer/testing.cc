#include "kvtransfer/testing.h"

#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <random>

#include "common/check.h"

namespace switchyard::testing {

KvLayout TinyLayout(int layers) {
  return {.kind = KvLayout::Kind::kMla, .layers = layers, .k_dim = 80, .v_dim = 64};
}

KvLayout LargeLayout(int layers) {
  return {.kind = KvLayout::Kind::kGqa, .layers = layers, .kv_heads = 8, .k_dim = 64, .v_dim = 64};
}

namespace {
// A word that no other block has, then it and its repetitions: cheap even under a sanitizer.
std::vector<std::byte> BlockBytes(size_t bytes, int layer, uint64_t seed, int index) {
  std::vector<std::byte> out(bytes);
  const uint64_t word = (seed << 48) ^ (uint64_t(layer) << 32) ^ static_cast<uint32_t>(index);
  std::memcpy(out.data(), &word, sizeof word);
  for (size_t n = sizeof word; n < bytes; n *= 2) {
    std::memcpy(out.data() + n, out.data(), std::min(n, bytes - n));
  }
  return out;
}
}  // namespace

void FillBlock(const KvStorage& kv, int layer, BlockId block, uint64_t seed, int index) {
  const auto bytes = BlockBytes(kv.layout().BlockBytes(), layer, seed, index);
  std::memcpy(kv.Block(layer, block.value()), bytes.data(), bytes.size());
}

bool BlockHolds(const KvStorage& kv, int layer, BlockId block, uint64_t seed, int index) {
  const auto bytes = BlockBytes(kv.layout().BlockBytes(), layer, seed, index);
  return std::memcmp(kv.Block(layer, block.value()), bytes.data(), bytes.size()) == 0;
}

std::vector<BlockId> ShuffledBlocks(int n, uint64_t seed) {
  std::vector<BlockId> blocks;
  for (int i = 0; i < n; ++i) blocks.push_back(BlockId(i));
  std::mt19937_64 rng(seed);
  std::shuffle(blocks.begin(), blocks.end(), rng);
  return blocks;
}

absl::StatusOr<KvHelloAnswer> Hello(KvReceiver* receiver, KvHello hello,
                                    const std::string& numerics_id) {
  hello.numerics_id = numerics_id;
  return Await<absl::StatusOr<KvHelloAnswer>>(
      [&](auto done) { receiver->Hello(hello, std::move(done)); });
}

absl::StatusOr<uint64_t> Open(KvReceiver* receiver, uint64_t peer_token, const KvTarget& target) {
  return Await<absl::StatusOr<uint64_t>>(
      [&](auto done) { receiver->Open(peer_token, target, std::move(done)); });
}

absl::StatusOr<KvTarget> Commit(KvReceiver* receiver, uint64_t peer_token, uint64_t session,
                                uint64_t digest, absl::Duration wait) {
  return Await<absl::StatusOr<KvTarget>>(
      [&](auto done) { receiver->Commit(peer_token, session, digest, wait, std::move(done)); });
}

SendFuture Prepare(KvSender* sender, const AttemptKey& key, int blocks) {
  auto promise = std::make_shared<std::promise<absl::StatusOr<KvSendResult>>>();
  // A second call would throw and end the process: done comes exactly once.
  sender->Prepare(key, blocks, [promise](absl::StatusOr<KvSendResult> result) {
    promise->set_value(std::move(result));
  });
  return promise->get_future();
}

void PushAll(KvSender* sender, const AttemptKey& key, int layers,
             const std::vector<BlockId>& blocks, int piece, uint64_t seed) {
  std::vector<std::pair<int, int>> pieces;
  const int n = static_cast<int>(blocks.size());
  for (int layer = 0; layer < layers; ++layer) {
    for (int first = 0; first < n; first += piece) pieces.push_back({layer, first});
  }
  std::mt19937_64 rng(seed);
  std::shuffle(pieces.begin(), pieces.end(), rng);
  for (auto [layer, first] : pieces) {
    const int end = std::min(n, first + piece);
    sender->Push(key, layer, first, {blocks.begin() + first, blocks.begin() + end});
  }
}

absl::StatusOr<KvSendResult> Await(SendFuture future) {
  if (future.wait_for(std::chrono::seconds(30)) == std::future_status::ready) return future.get();
  return absl::InternalError("done was never called");
}

void SendHello(int fd, const KvHello& hello) {
  SendNumber(fd, hello.lanes.size());
  for (const std::string& lane : hello.lanes) SendText(fd, lane);
  for (const std::string* s : {&hello.layout_id, &hello.host_id, &hello.ucx_address}) {
    SendText(fd, *s);
  }
}

KvHello ReceiveHello(int fd) {
  KvHello hello;
  hello.lanes.resize(std::min<uint64_t>(ReceiveNumber(fd), 8));
  for (std::string& lane : hello.lanes) lane = ReceiveText(fd);
  for (std::string* s : {&hello.layout_id, &hello.host_id, &hello.ucx_address}) {
    *s = ReceiveText(fd);
  }
  return hello;
}

void SendAnswer(int fd, const KvHelloAnswer& answer) {
  for (uint64_t n : {answer.peer_token, answer.ring_address, answer.ring_bytes}) SendNumber(fd, n);
  for (const std::string* s :
       {&answer.lane, &answer.ucx_address, &answer.ring_ucx_address, &answer.ring_rkey}) {
    SendText(fd, *s);
  }
}

KvHelloAnswer ReceiveAnswer(int fd) {
  KvHelloAnswer answer;
  for (uint64_t* n : {&answer.peer_token, &answer.ring_address, &answer.ring_bytes}) {
    *n = ReceiveNumber(fd);
  }
  for (std::string* s :
       {&answer.lane, &answer.ucx_address, &answer.ring_ucx_address, &answer.ring_rkey}) {
    *s = ReceiveText(fd);
  }
  return answer;
}

}  // namespace switchyard::testing
