// cluster/host_port.h: addresses as text.
#pragma once

#include <string>
#include <utility>

#include "absl/status/statusor.h"

namespace switchyard {

// host:port, with brackets around an IPv6 address.
std::string HostPort(const std::string& host, int port);

// "host:port", IPv6 in brackets. kInvalidArgument names the value.
absl::StatusOr<std::pair<std::string, int>> SplitHostPort(const std::string& address);

}  // namespace switchyard
