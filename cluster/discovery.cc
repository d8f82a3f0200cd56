#include "cluster/discovery.h"

#include <netdb.h>
#include <sys/socket.h>

#include <algorithm>
#include <memory>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "cluster/host_port.h"
#include "common/status_macros.h"

namespace switchyard {

absl::StatusOr<std::vector<std::string>> Discovery::SystemLookup(const std::string& name) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  const int rc = getaddrinfo(name.c_str(), nullptr, &hints, &found);
  if (rc == EAI_NONAME || rc == EAI_NODATA) return absl::NotFoundError(name);
  if (rc != 0) return absl::UnavailableError(absl::StrCat(name, ": ", gai_strerror(rc)));
  const std::unique_ptr<addrinfo, decltype(&freeaddrinfo)> owned(found, freeaddrinfo);
  std::vector<std::string> out;
  for (const addrinfo* a = found; a != nullptr; a = a->ai_next) {
    char text[NI_MAXHOST];
    if (getnameinfo(a->ai_addr, a->ai_addrlen, text, sizeof text, nullptr, 0, NI_NUMERICHOST) !=
        0) {
      continue;
    }
    out.push_back(a->ai_family == AF_INET6 ? absl::StrCat("[", text, "]") : std::string(text));
  }
  return out;
}

absl::StatusOr<Discovery> Discovery::Create(const std::vector<std::string>& entries,
                                            Lookup lookup) {
  Discovery discovery(std::move(lookup));
  std::set<std::string> seen;
  for (const std::string& entry : entries) {
    if (!seen.insert(entry).second) {
      return absl::InvalidArgumentError(absl::StrCat("worker address ", entry, " is listed twice"));
    }
    absl::string_view address = entry;
    const bool name = absl::ConsumePrefix(&address, "dns:");
    ASSIGN_OR_RETURN(const auto host_port, SplitHostPort(std::string(address)));
    if (host_port.second == 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("worker address ", entry, ": a port of 1 to 65535 is wanted"));
    }
    if (name) {
      discovery.names_.push_back({host_port.first, absl::StrCat(host_port.second), {}});
    } else {
      discovery.addresses_.push_back(entry);
    }
  }
  return discovery;
}

std::vector<std::string> Discovery::Resolve() {
  std::vector<std::string> out = addresses_;
  std::set<std::string> seen(out.begin(), out.end());
  for (Name& name : names_) {
    absl::StatusOr<std::vector<std::string>> hosts = lookup_(name.name);
    if (hosts.ok()) {
      std::sort(hosts->begin(), hosts->end());
      name.last.clear();
      for (const std::string& host : *hosts)
        name.last.push_back(absl::StrCat(host, ":", name.port));
    } else if (absl::IsNotFound(hosts.status())) {
      name.last.clear();
    }
    for (const std::string& address : name.last) {
      if (out.size() < kAddressesMax && seen.insert(address).second) out.push_back(address);
    }
  }
  return out;
}

}  // namespace switchyard
