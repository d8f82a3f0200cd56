#include "cli/ports.h"

#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>

#include "absl/strings/str_cat.h"
#include "cli/flags.h"
#include "cluster/grpc_server.h"
#include "common/status_macros.h"

namespace switchyard {
namespace {

constexpr int kPortsTried = 100;

absl::Status Choose(const CLI::App& app, const std::string& flag, const std::string& host,
                    int other, int* port) {
  if (*port == 0) return absl::OkStatus();
  if (app.count(flag) > 0) return ProbePort(host, *port);
  const int first = *port;
  for (; *port < first + kPortsTried; ++*port) {
    if (*port == other) continue;
    const absl::Status s = ProbePort(host, *port);
    if (!absl::IsAlreadyExists(s)) return s;
  }
  return absl::AlreadyExistsError(
      absl::StrCat(flag, ": ports ", first, " to ", *port - 1, " of ", host, " are taken"));
}

}  // namespace

void AddRouterFlags(CLI::App& app, FrontFlags* flags) {
  app.add_option("--host", flags->host, "address of the front")->capture_default_str();
  app.add_option("--port", flags->port, "HTTP; 0: any")
      ->check(CLI::Range(0, 65535))
      ->capture_default_str();
  app.add_option("--grpc-port", flags->grpc_port, "0: any")
      ->check(CLI::Range(0, 65535))
      ->capture_default_str();
  app.add_option("--served-model-name", flags->served_model_name, "default: the directory's name");
  app.add_option("--disaggregate", flags->disaggregate,
                 "which prompts a prefill rank computes, if there is one")
      ->check(CLI::IsMember({"auto", "always", "never"}))
      ->capture_default_str();
  app.add_option("--api-key-file", flags->api_key_file,
                 "clients must send one of this file's keys, one per line; the environment's "
                 "SWITCHYARD_API_KEY is one more")
      ->check(CLI::ExistingFile);
  app.add_option("--admin-key-file", flags->admin_key_file,
                 "Drain, Abort and /debug/requests want one of this file's keys; without it, the "
                 "first two are for clients on this machine")
      ->check(CLI::ExistingFile);
  app.add_option("--allowed-origins", flags->allowed_origins,
                 "web pages that may use the HTTP front (CORS); * is all")
      ->delimiter(',');
  for (auto [name, file, what] :
       {std::tuple("--ssl-certfile", &flags->ssl_certfile,
                   "TLS for HTTP and gRPC: the server's certificate and its chain, PEM"),
        std::tuple("--ssl-keyfile", &flags->ssl_keyfile, "its private key, PEM"),
        std::tuple("--ssl-ca-certs", &flags->ssl_ca_certs,
                   "mTLS: clients must show a certificate that one of these has signed, PEM")}) {
    app.add_option(name, *file, what)->check(CLI::ExistingFile);
  }
  app.add_option("--max-queue-seconds", flags->max_queue_seconds,
                 "a request that would wait longer for its first token is refused (429), unless it "
                 "has a timeout of its own")
      ->check(CLI::Range(0.0, 86400.0))
      ->capture_default_str();
  app.add_option("--stream-interval", flags->stream_interval,
                 "tokens of a stream's message; the first token goes alone, the last ones with the "
                 "end. More is cheaper for router and client, and less smooth")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
}

std::vector<std::string> RouterFlagNames() {
  return {"served-model-name", "disaggregate",   "api-key-file", "admin-key-file",
          "allowed-origins",   "ssl-certfile",   "ssl-keyfile",  "ssl-ca-certs",
          "max-queue-seconds", "stream-interval"};
}

absl::Status ChoosePorts(const CLI::App& app, FrontFlags* flags) {
  const bool both = app.count("--port") > 0 && app.count("--grpc-port") > 0;
  if (both && flags->port != 0 && flags->port == flags->grpc_port) {
    return absl::AlreadyExistsError(
        absl::StrCat("port and grpc-port are both ", flags->port, "; they must differ"));
  }
  const int other = app.count("--grpc-port") > 0 ? flags->grpc_port : 0;
  RETURN_IF_ERROR(Choose(app, "--port", flags->host, other, &flags->port));
  return Choose(app, "--grpc-port", flags->host, flags->port, &flags->grpc_port);
}

absl::StatusOr<ReservedPorts> ReservedPorts::Any(int count) {
  ReservedPorts reserved;
  for (int i = 0; i < count; ++i) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof address;
    const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), on = 1;
    if (fd >= 0) reserved.sockets_.push_back(fd);
    auto* const any = reinterpret_cast<sockaddr*>(&address);
    if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) != 0 ||
        bind(fd, any, size) != 0 || getsockname(fd, any, &size) != 0) {
      return absl::ErrnoToStatus(errno, "no free port of 127.0.0.1");
    }
    reserved.ports_.push_back(ntohs(address.sin_port));
  }
  return reserved;
}

ReservedPorts::~ReservedPorts() {
  for (const int fd : sockets_) close(fd);
}

}  // namespace switchyard
