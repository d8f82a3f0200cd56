#include "cluster/grpc_server.h"

#include <grpcpp/health_check_service_interface.h>
#include <netdb.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <mutex>

#include "absl/strings/str_cat.h"

namespace switchyard {
namespace {

constexpr int kPortsTried = 100;

// The server's and the channel's keepalive: who is silent for so long gets a ping, and has one
// second to answer. A hung peer is noticed after 1.6 s.
constexpr int kKeepaliveMs = 600, kKeepaliveTimeoutMs = 1000;

template <typename SetInt>
void ForEachKeepaliveArgument(const SetInt& set) {
  set(GRPC_ARG_KEEPALIVE_TIME_MS, kKeepaliveMs);
  set(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, kKeepaliveTimeoutMs);
  set(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  set(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
}

std::shared_ptr<grpc::ServerCredentials> CredentialsFor(const TlsOptions& tls) {
  if (!tls.enabled()) return grpc::InsecureServerCredentials();
  grpc::SslServerCredentialsOptions options(
      tls.client_ca.empty() ? GRPC_SSL_DONT_REQUEST_CLIENT_CERTIFICATE
                            : GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY);
  options.pem_root_certs = tls.client_ca;
  options.pem_key_cert_pairs.push_back({tls.key, tls.certificate});
  return grpc::SslServerCredentials(options);
}

using Queues = std::vector<std::unique_ptr<grpc::ServerCompletionQueue>>;

absl::StatusOr<std::unique_ptr<grpc::Server>> StartAt(const GrpcServerOptions& options, int port,
                                                      const std::vector<grpc::Service*>& services,
                                                      Queues* queues, int* bound) {
  // A switch of the process: it adds the service to servers that are built later.
  static std::once_flag health;
  std::call_once(health, [] { grpc::EnableDefaultHealthCheckService(true); });
  grpc::ServerBuilder builder;
  builder.AddListeningPort(HostPort(options.host, port), CredentialsFor(options.tls), bound);
  // gRPC turns SO_REUSEPORT on: two processes would share one port, each answering some calls.
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  ForEachKeepaliveArgument([&](const char* name, int v) { builder.AddChannelArgument(name, v); });
  // Our own clients ping each second, also without data: that is no misbehaviour.
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 250);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MAX_PING_STRIKES, 0);
  builder.AddChannelArgument(GRPC_ARG_MAX_METADATA_SIZE, options.metadata_bytes_max);
  builder.SetMaxReceiveMessageSize(options.receive_bytes_max);
  builder.SetMaxSendMessageSize(-1);
  for (grpc::Service* service : services) builder.RegisterService(service);
  for (int i = 0; i < options.queues; ++i) queues->push_back(builder.AddCompletionQueue());
  std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  if (server == nullptr) {
    for (const auto& queue : *queues) queue->Shutdown();
    return absl::UnavailableError(
        absl::StrCat("cannot serve gRPC at ", options.host, ":", port,
                     options.tls.enabled() ? " with this certificate and key" : ""));
  }
  return server;
}

}  // namespace

absl::Status ProbePort(const std::string& host, int port) {
  std::string node = host;
  if (node.size() > 2 && node.front() == '[') node = node.substr(1, node.size() - 2);
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE;
  addrinfo* found = nullptr;
  if (int rc = getaddrinfo(node.c_str(), std::to_string(port).c_str(), &hints, &found); rc != 0) {
    return absl::InvalidArgumentError(absl::StrCat("host ", host, ": ", gai_strerror(rc)));
  }
  std::unique_ptr<addrinfo, decltype(&freeaddrinfo)> owned(found, freeaddrinfo);
  const int fd = socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0) return absl::UnavailableError(absl::StrCat("socket: ", std::strerror(errno)));
  const int on = 1;  // as gRPC does: a port that only lingers in TIME_WAIT is free
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  const int rc = bind(fd, found->ai_addr, found->ai_addrlen);
  const int error = errno;
  // A listener is seen only by listen() when both sides set SO_REUSEADDR.
  const int rc_listen = rc == 0 ? listen(fd, 1) : -1;
  const int listen_error = errno;
  close(fd);
  if (rc_listen == 0) return absl::OkStatus();
  const int e = rc == 0 ? listen_error : error;
  if (e == EADDRINUSE) {
    return absl::AlreadyExistsError(absl::StrCat("port ", port, " of ", host, " is taken"));
  }
  return absl::UnavailableError(absl::StrCat(host, ":", port, ": ", std::strerror(e)));
}

absl::StatusOr<std::unique_ptr<GrpcServer>> GrpcServer::Listen(
    const GrpcServerOptions& options, const std::vector<grpc::Service*>& services) {
  if (options.port < 0 || options.port > 65535) {
    return absl::InvalidArgumentError(absl::StrCat("port ", options.port, ": 0…65535"));
  }
  const int tries = options.next_free_port && options.port != 0 ? kPortsTried + 1 : 1;
  absl::Status last;
  for (int i = 0; i < tries && options.port + i <= 65535; ++i) {
    const int port = options.port + i;
    if (port != 0) {  // gRPC's own refusal is a page of log
      last = ProbePort(options.host, port);
      if (absl::IsAlreadyExists(last)) continue;
      if (!last.ok()) return last;
    }
    int bound = 0;
    Queues queues;
    absl::StatusOr<std::unique_ptr<grpc::Server>> server =
        StartAt(options, port, services, &queues, &bound);
    if (server.ok()) {
      return std::unique_ptr<GrpcServer>(
          new GrpcServer(std::move(queues), *std::move(server), bound));
    }
    last = server.status();
  }
  return last;
}

GrpcServer::~GrpcServer() { Shutdown(); }

void GrpcServer::SetServing(bool serving) {
  server_->GetHealthCheckService()->SetServingStatus(serving);
}

void GrpcServer::Shutdown() {
  server_->Shutdown(std::chrono::system_clock::now());
  server_->Wait();
}

std::shared_ptr<grpc::Channel> DialChannel(const std::string& address, const TlsOptions& tls) {
  grpc::ChannelArguments args;
  ForEachKeepaliveArgument([&](const char* name, int value) { args.SetInt(name, value); });
  args.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 50);
  args.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 500);
  args.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 1000);  // in fact the time a connect may take
  args.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  args.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  args.SetInt(GRPC_ARG_ENABLE_RETRIES, 0);
  args.SetInt(GRPC_ARG_MAX_METADATA_SIZE, 16 << 10);
  args.SetMaxReceiveMessageSize(64 << 20);
  args.SetMaxSendMessageSize(-1);
  const auto credentials = tls.enabled()
                               ? grpc::SslCredentials({tls.client_ca, tls.key, tls.certificate})
                               : grpc::InsecureChannelCredentials();
  return grpc::CreateCustomChannel(address, credentials, args);
}

// The codes of both are google.rpc.Code.
absl::Status FromGrpc(const grpc::Status& status) {
  if (status.ok()) return absl::OkStatus();
  return absl::Status(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
}

grpc::Status ToGrpc(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  return grpc::Status(static_cast<grpc::StatusCode>(status.code()), std::string(status.message()));
}

}  // namespace switchyard
