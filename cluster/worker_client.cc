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

// Written by the caller itself, if nothing else is: a request waits for no other thread.
bool WorkerClient::Send(StreamId stream, pb::ToWorker message) {
  MutexLock lock(mu_);
  if (current_ != stream || stream_ == nullptr) return false;
  if (!std::exchange(writing_, true)) {
    stream_->Write(message, &written_);
    return true;
  }
  if (queue_.size() >= kQueueMax) {
    context_->TryCancel();
    return false;
  }
  queue_.push_back(std::move(message));
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
    context_ = &context;
  }
  bool registered = false;
  const absl::Status status = FromGrpc(Converse(id, &context, &registered));
  {
    MutexLock lock(mu_);
    context_ = nullptr;
    if (stop_) return absl::CancelledError("stopping");
  }
  const absl::Status why = absl::UnavailableError(
      absl::StrCat("worker ", address_, ": stream ended: ", status.ToString()));
  if (!registered) return why;
  callbacks_.lost(id, why);
  return absl::OkStatus();
}

// Dials, reads until the stream breaks, and writes what is queued behind a write of Send's.
grpc::Status WorkerClient::Converse(StreamId id, grpc::ClientContext* context, bool* registered) {
  grpc::CompletionQueue queue;
  const std::unique_ptr<Stream> stream = stub_->PrepareAsyncSession(context, &queue);
  std::shared_ptr<google::protobuf::Arena> arena;
  pb::FromWorker* message = nullptr;
  stream->StartCall(&opened_);
  void* tag;
  bool ok;
  for (bool reading = true; reading || Writing();) {  // an event of each comes
    queue.Next(&tag, &ok);
    if (tag == &written_) {
      WriteNext(ok);
      continue;
    }
    reading = ok && (tag == &opened_ || Take(id, arena, *message, registered));
    if (ok && tag == &opened_) Open(id, stream.get());
    if (reading) {
      arena = std::make_shared<google::protobuf::Arena>();
      message = google::protobuf::Arena::CreateMessage<pb::FromWorker>(arena.get());
      stream->Read(message, &read_);
    } else {
      Close();
      // One that has ended by itself says why in Finish, unless a write still waits.
      if (ok || Writing()) context->TryCancel();
    }
  }
  grpc::Status status;
  stream->Finish(&status, &opened_);
  queue.Next(&tag, &ok);
  queue.Shutdown();
  while (queue.Next(&tag, &ok)) {
  }
  return status;
}

void WorkerClient::Open(StreamId id, Stream* stream) {
  pb::ToWorker hello;
  hello.mutable_hello()->set_wire_version(kClusterWireVersion);
  hello.mutable_hello()->set_router_id(router_id_);
  MutexLock lock(mu_);
  current_ = id;
  stream_ = stream;
  writing_ = true;
  stream->Write(hello, &written_);
}

bool WorkerClient::Take(StreamId id, const std::shared_ptr<google::protobuf::Arena>& arena,
                        const pb::FromWorker& message, bool* registered) {
  if (message.has_registration() == *registered) return false;  // first, and once
  if (message.has_registration()) {
    *registered = true;
    callbacks_.registered(id, message.registration());
  } else if (message.has_events()) {
    callbacks_.events(id, {arena, &message.events()});
  } else if (message.has_heartbeat()) {
    callbacks_.heartbeat(id, message.heartbeat());
  }
  return true;
}

bool WorkerClient::Writing() {
  MutexLock lock(mu_);
  return writing_;
}

void WorkerClient::WriteNext(bool ok) {
  MutexLock lock(mu_);
  writing_ = ok && !queue_.empty();
  if (!ok && context_ != nullptr) context_->TryCancel();  // ends the read
  if (!writing_) return;
  stream_->Write(queue_.front(), &written_);
  queue_.pop_front();
}

// Nothing is sent any more.
void WorkerClient::Close() {
  MutexLock lock(mu_);
  current_ = StreamId(0);
  stream_ = nullptr;
  queue_.clear();
}

}  // namespace switchyard
