#include "router/api_keys.h"

#include <cstdint>

#include "absl/strings/match.h"

namespace switchyard {
namespace {

// Looks at every byte of `given`, whatever differs first.
bool SameKey(std::string_view given, std::string_view key) {
  volatile uint8_t difference = given.size() == key.size() ? 0 : 1;
  for (size_t i = 0; i < given.size(); ++i) {
    const auto byte = static_cast<uint8_t>(key.empty() ? 1 : key[i % key.size()]);
    difference = difference | static_cast<uint8_t>(static_cast<uint8_t>(given[i]) ^ byte);
  }
  return difference == 0;
}

bool Holds(const std::vector<std::string>& keys, std::string_view authorization) {
  constexpr std::string_view kScheme = "bearer ";  // of any case, RFC 7235
  if (authorization.size() < kScheme.size() ||
      !absl::EqualsIgnoreCase(absl::string_view(authorization.data(), kScheme.size()),
                              absl::string_view(kScheme.data(), kScheme.size()))) {
    return false;
  }
  bool allowed = false;
  for (const std::string& key : keys) {
    allowed = SameKey(authorization.substr(kScheme.size()), key) || allowed;
  }
  return allowed;
}

}  // namespace

bool ApiKeys::Allows(std::string_view authorization) const {
  const bool admin = Holds(admin_keys_, authorization);
  return keys_.empty() || Holds(keys_, authorization) || admin;
}

bool ApiKeys::AllowsAdmin(std::string_view authorization) const {
  return admin_keys_.empty() ? Allows(authorization) : Holds(admin_keys_, authorization);
}

bool IsOfThisMachine(std::string_view peer) {
  // Brackets of IPv6 addresses may be escaped.
  for (const std::string_view prefix : {"ipv4:127.", "ipv6:[::1]:", "ipv6:%5B::1%5D:", "unix:"}) {
    if (peer.starts_with(prefix)) return true;
  }
  return false;
}

}  // namespace switchyard
