// tests/sim/sim_worker.h: a prefill or decode process: the real engine, attempts and KV ends on
// simulated threads.
#pragma once

#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "cluster/open_attempts.h"
#include "decode/decode_attempts.h"
#include "engine/engine.h"
#include "engine/worker_env.h"
#include "prefill/prefill_attempts.h"
#include "tests/sim/sim_kv.h"
#include "tests/sim/sim_net.h"
#include "tests/sim/world.h"

namespace switchyard::sim {

// A router's stream to a worker.
struct Stream {
  Stream(World* world, int worker, StreamId id)
      : worker(worker),
        id(id),
        down(&world->loop, &world->network, 0, worker),
        up(&world->loop, &world->network, worker, 0) {}
  const int worker;
  const StreamId id;
  Pipe down, up;
  std::function<void(const cluster::v1::ToWorker&)> deliver;  // the worker's, once it is open
  std::shared_ptr<Connection> connection = std::make_shared<Connection>();
};

class Worker final : public WorkerEnv {
 public:
  Worker(World* world, Node* node);
  ~Worker() override;

  // ---- WorkerEnv
  void Post(std::function<void()> task) override { control_.Post(std::move(task)); }
  void PostEngine(EngineTask task) override {
    engine_thread_.Post([this, task = std::move(task)] { task(*engine_); });
  }
  void Send(SessionId session, cluster::v1::AttemptEvent event) override;
  void SetActive(size_t attempts) override { active_ = attempts; }
  bool draining() const override { return draining_; }
  const Clock& clock() const override { return node_->clock; }
  KvStorage& kv() override { return engine_->kv(); }

  // A router has dialled; its messages come by OnMessage.
  void OpenStream(const std::shared_ptr<Stream>& stream);
  void Drain();
  size_t active() const { return active_; }

  // Runs on one of gRPC's threads.
  Thread& grpc() { return grpc_; }
  DecodeAttempts* decode() { return decode_.get(); }
  void OnKvMessage(unsigned am, const std::vector<std::byte>& header,
                   const std::vector<std::byte>& payload);

  // Empty if nothing of any request is left, else what is.
  std::string NotAtRest() const;

 private:
  struct Session {
    std::shared_ptr<Stream> stream;
    OpenAttempts open{1 << 14};
  };
  void OnMessage(SessionId id, const cluster::v1::ToWorker& message);
  void EndSession(SessionId id);
  void Beat(SessionId id);
  void SendHeartbeat(const Session& session);
  void Tick();
  void StepEngine();
  void CheckBlocks();
  std::unique_ptr<HandoffChannel> Dial(const std::string& address);

  World& world_;
  Node* const node_;
  const uint64_t life_;
  const bool is_prefill_;
  Thread control_, engine_thread_, kv_thread_, grpc_;
  std::unique_ptr<Engine> engine_;
  std::unique_ptr<Sender> sender_;
  std::unique_ptr<Receiver> receiver_;
  std::unique_ptr<PrefillAttempts> prefill_;
  std::unique_ptr<DecodeAttempts> decode_;
  std::map<SessionId, Session> sessions_;
  uint64_t next_session_ = 1;
  size_t active_ = 0;
  bool draining_ = false, busy_ = false;
  uint64_t steps_ = 0;
  std::shared_ptr<int> alive_ = std::make_shared<int>(0);
};

}  // namespace switchyard::sim
