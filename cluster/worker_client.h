// cluster/worker_client.h: the router's half of the router–worker stream: dials one address for as
// long as it lives, says hello, and hands on what the worker says.
#pragma once

#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <thread>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "cluster/convert.h"
#include "cluster/worker_id.h"
#include "common/ids.h"
#include "common/mutex.h"
#include "common/net/tls.h"
#include "proto/cluster.grpc.pb.h"

namespace switchyard {

// Called on the client's reader thread, in the order of the stream: registered, then events and
// heartbeats, then lost. They may block: the worker is then slowed down by flow control.
struct WorkerClientCallbacks {
  std::function<void(StreamId, cluster::v1::Registration)> registered;
  // Shared, because they live in one piece of memory, and go with it.
  std::function<void(StreamId, std::shared_ptr<const cluster::v1::StepEvents>)> events;
  std::function<void(StreamId, const cluster::v1::Heartbeat&)> heartbeat;
  // After `registered`, once for each.
  std::function<void(StreamId, const absl::Status&)> lost;
  // A stream ended before it registered, for another reason than the one before (for logs).
  std::function<void(const absl::Status&)> away = [](const absl::Status&) {};
};

// Thread-safe. Destruction ends the stream and joins; no callback comes after.
class WorkerClient {
 public:
  WorkerClient(std::string address, std::string router_id, WorkerClientCallbacks callbacks,
               const TlsOptions& tls = {});
  ~WorkerClient();
  WorkerClient(const WorkerClient&) = delete;

  // Queues one message on that stream; never blocks. False if the stream is over, or if its queue
  // is full (a worker that does not read): then it is ended, and `lost` follows.
  bool Send(StreamId stream, cluster::v1::ToWorker message);
  // Ends that stream, if it is still the current one. It is dialled anew.
  void Cancel(StreamId stream);

 private:
  using Stream = grpc::ClientAsyncReaderWriter<cluster::v1::ToWorker, cluster::v1::FromWorker>;
  void Run();
  absl::Status OneStream(StreamId id);
  grpc::Status Converse(StreamId id, grpc::ClientContext* context, bool* registered);
  // False: the stream is to end.
  void Open(StreamId id, Stream* stream);
  bool Take(StreamId id, const std::shared_ptr<google::protobuf::Arena>& arena,
            const cluster::v1::FromWorker& message, bool* registered);
  bool Writing();
  void WriteNext(bool ok);
  void Close();
  bool Sleep(absl::Duration time);  // false: stopping

  const std::string address_, router_id_;
  const WorkerClientCallbacks callbacks_;
  std::unique_ptr<cluster::v1::Worker::Stub> stub_;

  Mutex mu_;
  CondVar changed_;
  bool stop_ ABSL_GUARDED_BY(mu_) = false;
  StreamId current_ ABSL_GUARDED_BY(mu_);  // 0: none
  grpc::ClientContext* context_ ABSL_GUARDED_BY(mu_) = nullptr;
  Stream* stream_ ABSL_GUARDED_BY(mu_) = nullptr;                 // while it takes messages
  bool writing_ ABSL_GUARDED_BY(mu_) = false;                     // `written_` is to come
  std::deque<cluster::v1::ToWorker> queue_ ABSL_GUARDED_BY(mu_);  // behind what is being written
  int opened_ = 0, read_ = 0, written_ = 0;                       // tags: their addresses count
  std::thread thread_;
};

}  // namespace switchyard
