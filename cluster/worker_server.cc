#include "cluster/worker_server.h"

#include <algorithm>
#include <deque>
#include <optional>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "cluster/grpc_server.h"
#include "cluster/open_attempts.h"
#include "common/check.h"
#include "common/clock.h"

namespace switchyard {
namespace {

namespace pb = cluster::v1;
// How long a router that made an error may take to read what came before the answer to it.
constexpr absl::Duration kErrorReadMax = absl::Seconds(1);
constexpr size_t kBatchBytesMax = 4 << 20;  // of one StepEvents, unless one event is larger

// Cancels a call that has not got on in time: a read of the blocking API has no limit of its own.
class Fuse {
 public:
  Fuse(grpc::ServerContext* context, absl::Duration limit)
      : thread_([this, context, limit] {
          if (!done_.WaitForNotificationWithTimeout(limit)) context->TryCancel();
        }) {}
  ~Fuse() {
    done_.Notify();
    thread_.join();
  }

 private:
  absl::Notification done_;
  std::thread thread_;
};

}  // namespace

// The state of one stream: the handler's thread reads, a thread of the session writes, and any
// thread may queue.
class WorkerSession {
 public:
  WorkerSession(SessionId id, grpc::ServerContext* context, size_t queue_max, size_t attempts_max)
      : id_(id), context_(context), queue_max_(queue_max), open_(attempts_max) {}

  SessionId id() const { return id_; }
  const std::string& router_id() const { return router_id_; }
  void set_router_id(std::string id) { router_id_ = std::move(id); }

  OpenAttempts::Opened Open(const AttemptKey& key) {
    MutexLock lock(mu_);
    return open_.Open(key);
  }
  void Forget(const AttemptKey& key) {
    MutexLock lock(mu_);
    open_.Forget(key);
  }

  // Wake sends what is queued.
  bool Queue(pb::AttemptEvent event) {
    MutexLock lock(mu_);
    if (closed_) return false;
    open_.OnEvent(event);
    if (queue_.size() >= queue_max_) {
      context_->TryCancel();
      return false;
    }
    queue_.push_back(std::move(event));
    return true;
  }
  void Wake() { work_.NotifyOne(); }
  void WantHeartbeat() {
    MutexLock lock(mu_);
    heartbeat_wanted_ = true;
    work_.NotifyOne();
  }
  void Cancel() {
    MutexLock lock(mu_);
    if (!closed_) context_->TryCancel();
  }

  // Writes until Close or a broken stream.
  void WriteLoop(grpc::ServerReaderWriter<pb::FromWorker, pb::ToWorker>* stream,
                 const std::function<std::optional<pb::Heartbeat>()>& heartbeat,
                 absl::Duration every) {
    const MonotonicClock clock;
    absl::Time next_heartbeat = clock.Now();
    for (;;) {
      pb::FromWorker events;
      bool beat = false;
      {
        MutexLock lock(mu_);
        while (!closed_ && queue_.empty() && !heartbeat_wanted_ && clock.Now() < next_heartbeat) {
          work_.WaitFor(mu_, next_heartbeat - clock.Now());
        }
        if (closed_) return;
        beat = std::exchange(heartbeat_wanted_, false) || clock.Now() >= next_heartbeat;
        TakeBatch(events.mutable_events());
      }
      if (events.events().events_size() > 0 && !stream->Write(events)) break;
      if (beat) {
        if (std::optional<pb::Heartbeat> now = heartbeat()) {
          pb::FromWorker message;
          *message.mutable_heartbeat() = *std::move(now);
          if (!stream->Write(message)) break;
        }
        next_heartbeat = clock.Now() + every;
      }
    }
    Cancel();  // wakes the reader
  }

  void WriterEnded() {
    MutexLock lock(mu_);
    writer_ended_ = true;
    work_.NotifyAll();
  }
  // After Close: whether the writer ends within `limit`.
  bool AwaitWriter(absl::Duration limit) {
    const MonotonicClock clock;
    const absl::Time until = clock.Now() + limit;
    MutexLock lock(mu_);
    while (!writer_ended_ && clock.Now() < until) work_.WaitFor(mu_, until - clock.Now());
    return writer_ended_;
  }

  // Later Queue calls fail. Returns the attempts that have not ended.
  std::vector<AttemptKey> Close() {
    MutexLock lock(mu_);
    closed_ = true;
    work_.NotifyAll();
    return {open_.open().begin(), open_.open().end()};
  }

 private:
  void TakeBatch(pb::StepEvents* batch) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    size_t bytes = 0;
    while (!queue_.empty() && bytes < kBatchBytesMax) {
      bytes += queue_.front().ByteSizeLong();
      batch->mutable_events()->Add(std::move(queue_.front()));
      queue_.pop_front();
    }
  }

  const SessionId id_;
  grpc::ServerContext* const context_;  // alive until closed_
  const size_t queue_max_;
  std::string router_id_;  // set before the session is published
  Mutex mu_;
  CondVar work_;
  std::deque<pb::AttemptEvent> queue_ ABSL_GUARDED_BY(mu_);
  OpenAttempts open_ ABSL_GUARDED_BY(mu_);
  bool heartbeat_wanted_ ABSL_GUARDED_BY(mu_) = false;
  bool closed_ ABSL_GUARDED_BY(mu_) = false;
  bool writer_ended_ ABSL_GUARDED_BY(mu_) = false;
};

WorkerServer::WorkerServer(WorkerCallbacks callbacks, WorkerServerOptions options)
    : callbacks_(std::move(callbacks)), options_(options) {}

WorkerServer::~WorkerServer() {
  MutexLock lock(mu_);
  SY_CHECK_MSG(sessions_.empty(), "destroy the GrpcServer before its services");
}

std::shared_ptr<WorkerSession> WorkerServer::Find(SessionId id) const {
  MutexLock lock(mu_);
  auto it = sessions_.find(id);
  return it == sessions_.end() ? nullptr : it->second;
}

void WorkerServer::SendAll(std::vector<Addressed> events) {
  std::map<SessionId, std::shared_ptr<WorkerSession>> woken;
  for (auto& [id, event] : events) {
    const auto [it, first] = woken.try_emplace(id);
    if (first) it->second = Find(id);
    if (it->second != nullptr) it->second->Queue(std::move(event));
  }
  for (const auto& [id, session] : woken) {
    if (session != nullptr) session->Wake();
  }
}

void WorkerServer::HeartbeatNow() {
  MutexLock lock(mu_);
  for (const auto& [id, session] : sessions_) session->WantHeartbeat();
}

int WorkerServer::sessions() const {
  MutexLock lock(mu_);
  return static_cast<int>(sessions_.size());
}

// Until the first message has come, and with an answer that says what is wrong with it.
grpc::Status WorkerServer::Greet(grpc::ServerContext* context, Stream* stream,
                                 std::string* router_id) {
  {
    MutexLock lock(mu_);
    if (greetings_ >= options_.greetings_max) {
      return grpc::Status(
          grpc::RESOURCE_EXHAUSTED,
          absl::StrCat("streams without RouterHello: limit ", options_.greetings_max));
    }
    ++greetings_;
  }
  pb::ToWorker first;
  bool came;
  {
    const Fuse fuse(context, options_.hello_wait);
    came = stream->Read(&first);
  }
  {
    MutexLock lock(mu_);
    --greetings_;
  }
  if (!came) return grpc::Status(grpc::CANCELLED, "no RouterHello");
  if (!first.has_hello()) {
    return grpc::Status(grpc::INVALID_ARGUMENT, "the first message must be RouterHello");
  }
  if (first.hello().wire_version() != kClusterWireVersion) {
    return grpc::Status(grpc::FAILED_PRECONDITION,
                        absl::StrCat("wire_version: router ", first.hello().wire_version(),
                                     ", worker ", kClusterWireVersion));
  }
  *router_id = first.hello().router_id();
  return grpc::Status::OK;
}

grpc::Status WorkerServer::Session(grpc::ServerContext* context, Stream* stream) {
  std::string router_id;
  if (grpc::Status s = Greet(context, stream, &router_id); !s.ok()) return s;
  std::shared_ptr<WorkerSession> session;
  {
    MutexLock lock(mu_);
    // A router that dials again has given up its old stream, whether or not we have noticed.
    int others = 0;
    for (const auto& [id, old] : sessions_) {
      if (old->router_id() == router_id) {
        old->Cancel();
      } else {
        ++others;
      }
    }
    // Those that were cancelled end soon, but are there until then.
    if (others >= options_.sessions_max ||
        static_cast<int>(sessions_.size()) >= 2 * options_.sessions_max) {
      return grpc::Status(grpc::RESOURCE_EXHAUSTED,
                          absl::StrCat("sessions: limit ", options_.sessions_max));
    }
    session = std::make_shared<WorkerSession>(SessionId(next_session_++), context,
                                              options_.queue_max, options_.attempts_max);
    session->set_router_id(std::move(router_id));
    sessions_.emplace(session->id(), session);
  }
  const grpc::Status status = Serve(*session, context, stream);
  {
    MutexLock lock(mu_);
    sessions_.erase(session->id());
  }
  return status;
}

grpc::Status WorkerServer::Serve(WorkerSession& session, grpc::ServerContext* context,
                                 Stream* stream) {
  pb::FromWorker hello;
  *hello.mutable_registration() = callbacks_.registration();
  hello.mutable_registration()->set_wire_version(kClusterWireVersion);
  grpc::Status status = grpc::Status::OK;
  if (stream->Write(hello)) {
    std::thread writer([&] {
      session.WriteLoop(stream, callbacks_.heartbeat, options_.heartbeat_every);
      session.WriterEnded();
    });
    pb::ToWorker message;
    while (status.ok() && stream->Read(&message)) status = Take(session, std::move(message));
    std::vector<AttemptKey> open = session.Close();
    // A writer may wait for a router that is gone, or does not read; one that made an error is told
    // which, if it listens.
    if (status.ok() || !session.AwaitWriter(kErrorReadMax)) context->TryCancel();
    writer.join();
    callbacks_.on_session_end(session.id(), std::move(open));
  } else {
    session.Close();
    callbacks_.on_session_end(session.id(), {});
  }
  return status;
}

grpc::Status WorkerServer::Take(WorkerSession& session, pb::ToWorker message) {
  switch (message.message_case()) {
    case pb::ToWorker::kSubmit: {
      const AttemptKey key = FromProto(message.submit().id());
      if (key.request.empty() || key.request.size() > kRequestIdBytesMax || key.attempt < 1) {
        return grpc::Status(grpc::INVALID_ARGUMENT,
                            absl::StrCat("id: request of 1…", kRequestIdBytesMax,
                                         " bytes and attempt ≥ 1 wanted, got ", key.request.size(),
                                         " bytes and ", key.attempt));
      }
      switch (session.Open(key)) {
        case OpenAttempts::Opened::kNew:
          callbacks_.on_submit(session.id(), std::move(*message.mutable_submit()));
          break;
        case OpenAttempts::Opened::kRepeat:
          break;
        case OpenAttempts::Opened::kTooMany:
          session.Queue(
              ErrorEvent(key, absl::ResourceExhaustedError(absl::StrCat(
                                  "attempts of this session: limit ", options_.attempts_max))));
          session.Wake();
      }
      return grpc::Status::OK;
    }
    case pb::ToWorker::kAbort: {
      const AttemptKey key = FromProto(message.abort().id());
      session.Forget(key);
      callbacks_.on_abort(session.id(), key);
      return grpc::Status::OK;
    }
    case pb::ToWorker::kHello:
    case pb::ToWorker::MESSAGE_NOT_SET:
      break;
  }
  return grpc::Status(grpc::INVALID_ARGUMENT, "submit or abort expected");
}

}  // namespace switchyard
