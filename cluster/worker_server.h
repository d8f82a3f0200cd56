// cluster/worker_server.h: the worker's half of the router–worker stream: registers with each
// router that dials, takes its requests, sends tokens up in batches and a heartbeat every 250 ms.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/time/time.h"
#include "cluster/convert.h"
#include "cluster/worker_id.h"
#include "common/ids.h"
#include "common/mutex.h"
#include "proto/cluster.grpc.pb.h"

namespace switchyard {

// What a worker does about a session. All are called on gRPC's threads, several at a time; they
// must not block for long. For one session: on_submit and on_abort in the stream's order, then
// on_session_end, once.
struct WorkerCallbacks {
  std::function<cluster::v1::Registration()> registration;  // wire_version is filled in
  // Nothing: the worker does not get on, and routers are to notice by its silence.
  std::function<std::optional<cluster::v1::Heartbeat>()> heartbeat;
  std::function<void(SessionId, cluster::v1::Submit)> on_submit;
  std::function<void(SessionId, const AttemptKey&)> on_abort;
  // The stream is over: abort these, the attempts that came by it and have not ended.
  std::function<void(SessionId, std::vector<AttemptKey>)> on_session_end;
};

struct WorkerServerOptions {
  int sessions_max = 16;                         // routers
  int greetings_max = 64;                        // streams that have not said RouterHello yet
  absl::Duration hello_wait = absl::Seconds(5);  // for that; then the stream is cancelled
  size_t attempts_max = 1 << 14;  // open ones of a session; more are answered kResourceExhausted
  size_t queue_max = 1 << 16;     // events that a session holds for a router that does not read;
                                  // past it the session is cancelled
  absl::Duration heartbeat_every = absl::Milliseconds(250);
};

class WorkerSession;

// A gRPC service: pass it to GrpcServer::Listen, and destroy the GrpcServer first. Thread-safe.
class WorkerServer final : public cluster::v1::Worker::Service {
 public:
  explicit WorkerServer(WorkerCallbacks callbacks, WorkerServerOptions options = {});
  ~WorkerServer() override;

  // Queues events, those of one session for one message; never blocks. An event with a finish, or
  // handed_off, is the attempt's last. Events of a session that is over are dropped: its attempts
  // have been, or are about to be, ended by on_session_end.
  using Addressed = std::pair<SessionId, cluster::v1::AttemptEvent>;
  void SendAll(std::vector<Addressed> events);
  // Sends every session a heartbeat now (after a change that routers should know at once).
  void HeartbeatNow();
  int sessions() const;

 private:
  using Stream = grpc::ServerReaderWriter<cluster::v1::FromWorker, cluster::v1::ToWorker>;
  grpc::Status Session(grpc::ServerContext* context, Stream* stream) override;
  grpc::Status Greet(grpc::ServerContext* context, Stream* stream, std::string* router_id);
  grpc::Status Serve(WorkerSession& session, grpc::ServerContext* context, Stream* stream);
  grpc::Status Take(WorkerSession& session, cluster::v1::ToWorker message);
  std::shared_ptr<WorkerSession> Find(SessionId id) const;

  const WorkerCallbacks callbacks_;
  const WorkerServerOptions options_;
  mutable Mutex mu_;
  uint64_t next_session_ ABSL_GUARDED_BY(mu_) = 1;
  int greetings_ ABSL_GUARDED_BY(mu_) = 0;
  std::map<SessionId, std::shared_ptr<WorkerSession>> sessions_ ABSL_GUARDED_BY(mu_);
};

}  // namespace switchyard
