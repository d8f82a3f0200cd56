#include "cli/ports.h"

#include "absl/strings/str_cat.h"
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
}

absl::Status ChoosePorts(const CLI::App& app, FrontFlags* flags) {
  RETURN_IF_ERROR(Choose(app, "--port", flags->host, /*other=*/0, &flags->port));
  return Choose(app, "--grpc-port", flags->host, flags->port, &flags->grpc_port);
}

}  // namespace switchyard
