// router/api_keys.h: who may use the router: clients that send one of these keys as
// "Authorization: Bearer KEY". Immutable, so thread-safe.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace switchyard {

class ApiKeys {
 public:
  // No keys: nothing is asked for. Admins may do what others may, too.
  explicit ApiKeys(std::vector<std::string> keys, std::vector<std::string> admin_keys = {})
      : keys_(std::move(keys)), admin_keys_(std::move(admin_keys)) {}

  // `authorization`: the header's value; empty if there was none. How long it takes depends on
  // lengths alone, not on what a wrong key has in common with a right one.
  bool Allows(std::string_view authorization) const;
  // What concerns others' requests. As Allows, if there are no admin keys.
  bool AllowsAdmin(std::string_view authorization) const;
  bool has_admin_keys() const { return !admin_keys_.empty(); }

 private:
  const std::vector<std::string> keys_, admin_keys_;
};

// Whether a client comes from the router's own machine. `peer`: as gRPC names it.
bool IsOfThisMachine(std::string_view peer);

}  // namespace switchyard
