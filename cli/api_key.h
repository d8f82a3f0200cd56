// cli/api_key.h: where API keys come from: a file or the environment, never the command line, which
// every user of the machine can read.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace switchyard {

// SWITCHYARD_API_KEY; empty if it is not set. What `ask` and `bench serve` send.
std::string ApiKeyOfEnvironment();

// The keys that a router asks for: the lines of `file`, if one is named, and the environment's.
// Errors: kNotFound; kInvalidArgument for a file without a key, or a key that no header could
// carry. No error shows a key.
absl::StatusOr<std::vector<std::string>> LoadApiKeys(const std::string& file);

// Whether only this machine reaches what listens at `host`.
bool IsLoopback(const std::string& host);

}  // namespace switchyard
