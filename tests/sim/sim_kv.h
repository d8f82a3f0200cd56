// tests/sim/sim_kv.h: the KV lanes of a simulated worker: the ends of kvtransfer/ over a network
// that may lose, double, delay, reorder and flip, and ring segments that a peer can store into for
// as long as it lives.
#pragma once

#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "kvtransfer/kv_transfer.h"
#include "kvtransfer/receive_end.h"
#include "kvtransfer/send_end.h"
#include "tests/sim/world.h"

namespace switchyard::sim {

// A worker's process as its lanes see it.
struct KvHome {
  World* world;
  Node* node;
  uint64_t life;
  Thread* thread;  // the KV I/O thread
};

// A block that somebody outside of the engine relies on.
struct HeldBlock {
  BlockId block;
  uint32_t generation;
};

// The prefill rank's end. Posts to the KV thread as the real one does.
class Sender final : public KvSender {
 public:
  Sender(KvHome home, KvStorage* kv);
  KvHello MakeHello() const override { return hello_; }
  void Connect(const KvHelloAnswer& answer) override;
  void Disconnect(uint64_t peer_token) override;
  void Prepare(const AttemptKey& key, int blocks_total,
               std::function<void(absl::StatusOr<KvSendResult>)> done) override;
  void Begin(const AttemptKey& key, uint64_t peer_token, uint64_t session,
             std::vector<uint32_t> generations) override;
  void Push(const AttemptKey& key, int layer, int first_block,
            std::vector<BlockId> blocks) override;
  void Cancel(const AttemptKey& key) override;

  void Turn();  // after each turn of the KV thread
  void OnMessage(std::span<const std::byte> header) { end_.OnCredit(header); }
  // Pushed and not let go yet: they must stay the engine's, unchanged.
  const std::map<AttemptKey, std::set<BlockId>>& pushed() const { return pushed_; }

 private:
  const KvHome home_;
  KvHello hello_;
  SendEnd end_;
  std::map<AttemptKey, std::set<BlockId>> pushed_;
};

// The decode rank's end.
class Receiver final : public KvReceiver {
 public:
  Receiver(KvHome home, KvStorage* kv, OnDropped on_dropped);
  void Hello(const KvHello& hello,
             std::function<void(absl::StatusOr<KvHelloAnswer>)> done) override;
  void Open(uint64_t peer_token, const KvTarget& target,
            std::function<void(absl::StatusOr<uint64_t>)> done) override;
  void Commit(uint64_t peer_token, uint64_t session, uint64_t digest, absl::Duration wait,
              std::function<void(absl::StatusOr<KvTarget>)> done) override;
  void Cancel(const AttemptKey& key) override;
  void Renew(uint64_t peer_token, std::vector<uint64_t> sessions,
             std::function<void(std::vector<uint64_t> lost)> done) override;
  KvReceiverStats stats() const override { return end_.stats(); }

  void Turn();
  void OnMessage(std::span<const std::byte> header, std::span<const std::byte> payload) {
    end_.OnFrame(header, payload);
  }
  // Blocks that frames may be stored into: they must be leased, under these generations.
  const std::map<AttemptKey, std::vector<HeldBlock>>& held() const { return held_; }

 private:
  absl::StatusOr<std::unique_ptr<ReceiveLane>> MakeLane(const KvHello& hello, KvHelloAnswer* answer,
                                                        OnLaneError on_error);
  const KvHome home_;
  const size_t block_bytes_;
  std::map<AttemptKey, std::vector<HeldBlock>> held_;
  ReceiveEnd end_;
  uint64_t stale_frames_ = 0;  // that the world knows of
};

}  // namespace switchyard::sim
