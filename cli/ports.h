// cli/ports.h: the flags of the cluster's front, which `router` and `serve` share, and the choice
// of its ports: a default port that is taken moves to the next free one, an explicit one is an
// error.
#pragma once

#include <CLI/CLI.hpp>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace switchyard {

struct FrontFlags {
  std::string host = "127.0.0.1", served_model_name, disaggregate = "auto";
  int port = 8000, grpc_port = 50051;
  std::string api_key_file, admin_key_file;
  std::vector<std::string> allowed_origins;
  std::string ssl_certfile, ssl_keyfile, ssl_ca_certs;
  double max_queue_seconds = 60;
  int stream_interval = 1;
};

void AddRouterFlags(CLI::App& app, FrontFlags* flags);
// Those of them that `serve` hands on to its router as they were given.
std::vector<std::string> RouterFlagNames();
// Replaces ports that were not given by free ones. kAlreadyExists names a taken one, or one that is
// given twice.
absl::Status ChoosePorts(const CLI::App& app, FrontFlags* flags);

// Ports of 127.0.0.1 for servers of other processes, until it ends. Each is bound here and not
// listened on: a server that sets SO_REUSEADDR, as gRPC does, can have it, and Linux gives it to
// nobody who asks for any port. A port that is only looked up is taken by another process's
// connection before its server starts, some time or other.
class ReservedPorts {
 public:
  // `count` different ones. Errors: those of the system, where it has no more ports or files.
  static absl::StatusOr<ReservedPorts> Any(int count);
  ~ReservedPorts();
  ReservedPorts(ReservedPorts&&) = default;
  ReservedPorts& operator=(ReservedPorts&&) = delete;

  const std::vector<int>& ports() const { return ports_; }

 private:
  ReservedPorts() = default;
  std::vector<int> sockets_, ports_;
};

}  // namespace switchyard
