#include "cluster/worker_client.h"

#include <google/protobuf/arena.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "cluster/grpc_server.h"
#include "common/clock.h"

namespace switchyard {
namespace {

namespace pb = cluster::v1;
constexpr size_t kQueueMax = 1 << 14;
constexpr absl::Duration kBackoffMin = absl::Milliseconds(50);
constexpr absl::Duration kBackoffMax = absl::Milliseconds(500);

}  // namespace

WorkerClient::WorkerClient(std::string address, std::string router_id,
                           WorkerClientCallbacks callbacks, const TlsOptions& tls)
    : address_(std::move(address)),
      router_id_(std::move(router_id)),
      callbacks_(std::move(callbacks)),
      stub_(pb::Worker::NewStub(DialChannel(address_, tls))),
      thread_([this] { Run(); }) {}

WorkerClient::~WorkerClient() {
  {
    MutexLock lock(mu_);
    stop_ = true;
    if (context_ != nullptr) context_->TryCancel();
    changed_.NotifyAll();
  }
  thread_.join();
}

bool WorkerClient::Send(StreamId stream, pb::ToWorker message) {
  MutexLock lock(mu_);
  if (current_ != stream || context_ == nullptr) return false;
  if (queue_.size() >= kQueueMax) {
    context_->TryCancel();
    return false;
  }
  queue_.push_back(std::move(message));
  changed_.NotifyAll();
  return true;
}

void WorkerClient::Cancel(StreamId stream) {
  MutexLock lock(mu_);
  if (current_ == stream && context_ != nullptr) context_->TryCancel();
}

bool WorkerClient::Sleep(absl::Duration time) {
  const MonotonicClock clock;
  const absl::Time until = clock.Now() + time;
  MutexLock lock(mu_);
  while (!stop_ && clock.Now() < until) changed_.WaitFor(mu_, until - clock.Now());
  return !stop_;
}

void WorkerClient::Run() {
  const MonotonicClock clock;
  absl::Duration backoff = kBackoffMin;
  absl::Status last_away;
  for (uint64_t n = 1;; ++n) {
    const absl::Time start = clock.Now();
    const absl::Status status = OneStream(StreamId(n));
    if (absl::IsCancelled(status)) return;  // stopping
    if (status.code() != last_away.code()) {
      last_away = status;
      if (!status.ok()) callbacks_.away(status);
    }
    backoff = clock.Now() - start > absl::Seconds(1) ? kBackoffMin : backoff;
    if (!Sleep(backoff)) return;
    backoff = std::min(backoff * 2, kBackoffMax);
  }
}

// OK if the worker registered (callbacks have told the rest), else why it did not.
absl::Status WorkerClient::OneStream(StreamId id) {
  grpc::ClientContext context;
  {
    MutexLock lock(mu_);
    if (stop_) return absl::CancelledError("stopping");
    current_ = id;
    context_ = &context;
    queue_.clear();
  }
  std::unique_ptr<Stream> stream = stub_->Session(&context);
  pb::ToWorker hello;
  hello.mutable_hello()->set_wire_version(kClusterWireVersion);
  hello.mutable_hello()->set_router_id(router_id_);
  bool registered = false;
  if (stream->Write(hello)) {
    std::thread writer([&] { WriteLoop(id, *stream); });
    Read(id, *stream, &registered);
    {
      MutexLock lock(mu_);
      context.TryCancel();  // also ends a Write that waits
      current_ = StreamId(0);
      changed_.NotifyAll();
    }
    writer.join();
  }
  const absl::Status status = FromGrpc(stream->Finish());
  {
    MutexLock lock(mu_);
    current_ = StreamId(0);
    context_ = nullptr;
    if (stop_) return absl::CancelledError("stopping");
  }
  const absl::Status why = absl::UnavailableError(
      absl::StrCat("worker ", address_, ": stream ended: ", status.ToString()));
  if (!registered) return why;
  callbacks_.lost(id, why);
  return absl::OkStatus();
}

void WorkerClient::Read(StreamId id, Stream& stream, bool* registered) {
  for (;;) {
    const auto arena = std::make_shared<google::protobuf::Arena>();
    auto& message = *google::protobuf::Arena::CreateMessage<pb::FromWorker>(arena.get());
    if (!stream.Read(&message)) return;
    if (message.has_registration() == *registered) return;  // first, and once
    if (message.has_registration()) {
      *registered = true;
      callbacks_.registered(id, message.registration());
    } else if (message.has_events()) {
      callbacks_.events(id, {arena, &message.events()});
    } else if (message.has_heartbeat()) {
      callbacks_.heartbeat(id, message.heartbeat());
    }
  }
}

void WorkerClient::WriteLoop(StreamId id, Stream& stream) {
  for (;;) {
    pb::ToWorker message;
    {
      MutexLock lock(mu_);
      while (current_ == id && queue_.empty()) changed_.Wait(mu_);
      if (current_ != id) return;
      message = std::move(queue_.front());
      queue_.pop_front();
    }
    if (!stream.Write(message)) return Cancel(id);
  }
}

}  // namespace switchyard
