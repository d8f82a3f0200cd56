// engine/worker_env.h: what the attempts on a worker need of the process around them. WorkerCore is
// the real one; a simulator can be another.
#pragma once

#include <cstddef>
#include <functional>

#include "absl/time/time.h"
#include "cluster/worker_id.h"
#include "common/clock.h"
#include "common/telemetry/log.h"
#include "common/telemetry/trace.h"
#include "engine/engine.h"
#include "proto/cluster.pb.h"

namespace switchyard {

// How long an attempt may live on a worker, whatever the router says.
inline constexpr absl::Duration kAttemptLifeMax = absl::Hours(6);

class WorkerEnv {
 public:
  using EngineTask = std::function<void(Engine&)>;
  virtual ~WorkerEnv() = default;

  // Runs `task` on the control loop, in the order of its source. Thread-safe.
  virtual void Post(std::function<void()> task) = 0;
  // Runs `task` on the engine's thread between two steps. Thread-safe.
  virtual void PostEngine(EngineTask task) = 0;
  // Queues an event for the router of `session`; nothing happens if the session is over.
  virtual void Send(SessionId session, cluster::v1::AttemptEvent event) = 0;
  // How many attempts a drain must wait for.
  virtual void SetActive(size_t attempts) = 0;
  virtual bool draining() const = 0;
  virtual const Clock& clock() const = 0;
  virtual KvStorage& kv() = 0;
  // Where attempts are told of; null: nowhere.
  virtual Logger* log() { return nullptr; }
  virtual SpanSink* spans() { return nullptr; }
};

}  // namespace switchyard
