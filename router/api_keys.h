// router/api_keys.h: who may use the router: clients that send one of these keys as
// "Authorization: Bearer KEY". Immutable, so thread-safe.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace switchyard {

class ApiKeys {
 public:
  // No keys: nothing is asked for.
  explicit ApiKeys(std::vector<std::string> keys) : keys_(std::move(keys)) {}

  // `authorization`: the header's value; empty if there was none. How long it takes depends on
  // lengths alone, not on what a wrong key has in common with a right one.
  bool Allows(std::string_view authorization) const;

 private:
  const std::vector<std::string> keys_;
};

}  // namespace switchyard
