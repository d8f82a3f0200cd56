// router/grpc_streams.h: the Generate calls of a gRPC front. Two completion queues instead of
// gRPC's own threads, which cost a wake-up per message: one hands out new calls, to threads that
// tokenize and submit; the other one's thread writes all streams, woken once for all that wait.
#pragma once

#include <grpcpp/alarm.h>
#include <grpcpp/grpcpp.h>

#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "cluster/grpc_server.h"
#include "common/mutex.h"
#include "proto/inference.grpc.pb.h"
#include "router/router.h"

namespace switchyard {

// All but Generate is gRPC's to call.
using AsyncRouterService =
    v1::Router::WithAsyncMethod_Generate<v1::Router::WithCallbackMethod_Abort<
        v1::Router::WithCallbackMethod_GetModelInfo<v1::Router::WithCallbackMethod_GetLoad<
            v1::Router::WithCallbackMethod_Drain<v1::Router::Service>>>>>;

class GrpcStreams {
 public:
  static constexpr int kQueues = 2;  // that the server must have
  struct Options {
    RouterCore* core = nullptr;
    AsyncRouterService* service = nullptr;
    GrpcServer* server = nullptr;
    std::function<absl::Status(const grpc::ServerContextBase&)> check;  // may this client ask?
    size_t queued_updates_max = 4096;                // of one answer; then the stream is aborted
    absl::Duration unread_grace = absl::Seconds(5);  // then cut, if its end is not read
    absl::Duration ended_grace = absl::Minutes(1);   // a whole answer is cut, if not read by then
  };

  // Takes calls at once. What `options` names must outlive it.
  explicit GrpcStreams(Options options);
  // Ends all streams, which aborts their requests, and shuts the server down.
  ~GrpcStreams();
  GrpcStreams(const GrpcStreams&) = delete;
  int running();  // calls that came and are not over: their clients have not got all

 private:
  using Tag = std::function<void(bool ok)>;
  class Stream;

  static void Serve(grpc::ServerCompletionQueue* queue);
  // `stream` has something to write. Any thread; the stream must not have finished.
  void Schedule(std::shared_ptr<Stream> stream);
  void WriteReady();
  void Leave();  // one of open_

  const Options options_;
  grpc::ServerCompletionQueue& calls_;
  grpc::ServerCompletionQueue& writes_;
  Mutex mu_;
  std::vector<std::shared_ptr<Stream>> ready_ ABSL_GUARDED_BY(mu_);
  bool woken_ ABSL_GUARDED_BY(mu_) = false;  // the alarm's event is on its way
  int open_ ABSL_GUARDED_BY(mu_) = 0;        // calls that were asked for and are not over
  int waiting_ ABSL_GUARDED_BY(mu_) = 0;     // of them: have not come
  CondVar left_;
  grpc::Alarm alarm_;
  Tag wake_;
  std::vector<std::thread> threads_;
};

}  // namespace switchyard
