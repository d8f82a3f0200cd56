// cluster/grpc_server.h: a listening gRPC server and the channel settings that go with it, the same
// for every process of a cluster: a health service, keepalive that notices a hung peer in about 2
// s, capped sizes; a taken port is an error and never silently shared.
#pragma once

#include <grpcpp/grpcpp.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "cluster/host_port.h"
#include "common/net/tls.h"

namespace switchyard {

struct GrpcServerOptions {
  std::string host = "127.0.0.1";
  int port = 0;                 // 0: any
  bool next_free_port = false;  // a taken port moves to one of the next 100
  int receive_bytes_max = 64 << 20;
  int metadata_bytes_max = 16 << 10;
  TlsOptions tls = {};
  int queues = 0;  // completion queues, for services that do without gRPC's threads
};

// RAII: listens from Listen to Shutdown or destruction. Thread-safe.
class GrpcServer {
 public:
  // `services` must outlive the server. kAlreadyExists names a taken port; kInvalidArgument a bad
  // one; kUnavailable an address that cannot be bound, or a certificate and key that do not fit.
  static absl::StatusOr<std::unique_ptr<GrpcServer>> Listen(
      const GrpcServerOptions& options, const std::vector<grpc::Service*>& services);
  ~GrpcServer();

  int port() const { return port_; }
  grpc::Server& server() { return *server_; }
  // The i-th. Whoever reads it shuts it down after Shutdown, and reads it to its end.
  grpc::ServerCompletionQueue& queue(size_t i) { return *queues_.at(i); }
  // What grpc.health.v1.Health answers, for the server as a whole ("") and for each of its
  // services. Serving from the start.
  void SetServing(bool serving);
  // Cancels every running call and returns when their handlers have. Idempotent.
  void Shutdown();

 private:
  using Queues = std::vector<std::unique_ptr<grpc::ServerCompletionQueue>>;
  GrpcServer(Queues queues, std::unique_ptr<grpc::Server> server, int port)
      : queues_(std::move(queues)), server_(std::move(server)), port_(port) {}
  Queues queues_;  // outlive the server
  std::unique_ptr<grpc::Server> server_;
  const int port_;
};

// Whether `port` of `host` can be bound now: kAlreadyExists if it is taken.
absl::Status ProbePort(const std::string& host, int port);

// A channel that notices a hung peer, redials within 500 ms, and shares no connection with another
// one. In clear unless `tls` is enabled: then both ends prove their names.
std::shared_ptr<grpc::Channel> DialChannel(const std::string& address, const TlsOptions& tls = {});

// Trailing metadata of a call that was refused for lack of room: when to try again.
inline constexpr char kRetryAfterKey[] = "retry_after_ms";

absl::Status FromGrpc(const grpc::Status& status);
grpc::Status ToGrpc(const absl::Status& status);

}  // namespace switchyard
