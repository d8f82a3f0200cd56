// cluster/discovery.h: where the workers of one role are. An entry is an address, "host:port", or
// "dns:name:port": every address that the name has now, as of a Kubernetes headless service, with
// that port. One source of addresses, whether they change or not.
#pragma once

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace switchyard {

class Discovery {
 public:
  // The host's addresses as text, IPv6 in brackets. kNotFound: the name has none now; anything
  // else: it could not be asked.
  using Lookup = std::function<absl::StatusOr<std::vector<std::string>>(const std::string& name)>;
  static absl::StatusOr<std::vector<std::string>> SystemLookup(const std::string& name);

  // kInvalidArgument: an entry that is neither, or is there twice.
  static absl::StatusOr<Discovery> Create(const std::vector<std::string>& entries,
                                          Lookup lookup = SystemLookup);

  // Whether Resolve may ever answer differently.
  bool changes() const { return !names_.empty(); }
  // All addresses now, each once, at most kAddressesMax: given ones first, then by name and
  // address. May block for a lookup. A name that could not be asked keeps its last answer.
  std::vector<std::string> Resolve();

  static constexpr size_t kAddressesMax = 1024;

 private:
  struct Name {
    std::string name, port;
    std::vector<std::string> last;  // host:port
  };
  explicit Discovery(Lookup lookup) : lookup_(std::move(lookup)) {}

  Lookup lookup_;
  std::vector<std::string> addresses_;
  std::vector<Name> names_;
};

}  // namespace switchyard
