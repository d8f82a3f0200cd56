// cli/api_key.h: where API keys come from: a file or the environment, never the command line, which
// every user of the machine can read.
#pragma once

#include <grpcpp/client_context.h>

#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace switchyard {

// SWITCHYARD_API_KEY; empty if it is not set. What `ask`, `top` and `bench serve` send.
std::string ApiKeyOfEnvironment();

// Of the commands that send it, for --help.
inline constexpr char kApiKeyHelp[] =
    "Environment:\n  SWITCHYARD_API_KEY  sent as the API key (Authorization: Bearer …), if it is "
    "set; no flag has it, as all users of a machine can read the flags";

// Its metadata, if it is set.
void SendApiKey(grpc::ClientContext* context);

// The lines of `file`; none if it has no name. Errors: kNotFound; kInvalidArgument for a file
// without a key, or a key that no header could carry. No error shows a key.
absl::StatusOr<std::vector<std::string>> LoadKeyFile(const std::string& file);

// The keys that a router asks for: those, and the environment's.
absl::StatusOr<std::vector<std::string>> LoadApiKeys(const std::string& file);

// Whether only this machine reaches what listens at `host`.
bool IsLoopback(const std::string& host);
// Whether that is all of the machine's addresses, and none that others could dial.
bool IsWildcard(const std::string& host);

}  // namespace switchyard
