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

// `count` different ports of 127.0.0.1 that nobody listens on now.
absl::StatusOr<std::vector<int>> FreePorts(int count);

}  // namespace switchyard
