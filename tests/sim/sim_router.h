// tests/sim/sim_router.h: a router process: the real conductor on a simulated thread, dialling
// simulated workers.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "router/conductor.h"
#include "tests/sim/sim_worker.h"
#include "tests/sim/world.h"

namespace switchyard::sim {

class Router final : public WorkerLinks {
 public:
  explicit Router(World* world);
  ~Router() override;

  // As Core::Submit, without validation. Empty if it was refused, else the request's number.
  std::optional<uint64_t> Submit(ClientRequest request, RouterCore::Sink sink);
  void Abort(uint64_t number);
  int requests() const { return conductor_.requests(); }

  // ---- WorkerLinks. A slot is a node less one.
  void Dial(size_t slot, const std::string& address) override;
  void Forget(size_t) override {}
  bool Send(size_t slot, StreamId stream, cluster::v1::ToWorker message) override;
  void Cancel(size_t slot, StreamId stream) override;

  // What workers say.
  void OnRegistered(const std::shared_ptr<Stream>& stream, const cluster::v1::Registration& r);
  void OnEvents(const std::shared_ptr<Stream>& stream, const cluster::v1::StepEvents& events);
  void OnHeartbeat(const std::shared_ptr<Stream>& stream, const cluster::v1::Heartbeat& h);

 private:
  Conductor::Outside MakeOutside();
  CoreOptions MakeOptions() const;
  void Turn();
  void DialLater(size_t slot);
  void DialNow(size_t slot);
  void OnBreak(size_t slot, StreamId stream, const absl::Status& why);
  void CheckNeed(const cluster::v1::AttemptEvent& e) const;

  World& world_;
  Node* const node_;
  Thread thread_;
  const CoreOptions options_;
  Conductor conductor_;
  std::vector<std::shared_ptr<Stream>> streams_;  // by slot
  uint64_t next_number_ = 1, next_stream_ = 1;
  bool was_ready_ = false;
  std::shared_ptr<int> alive_ = std::make_shared<int>(0);
};

}  // namespace switchyard::sim
