#include "common/net/lanes.h"

#include <unistd.h>

#include <fstream>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"

namespace switchyard {

std::string HostId() {
  std::ifstream file("/proc/sys/kernel/random/boot_id");
  std::string boot;
  char pid_namespace[64];
  ssize_t n = readlink("/proc/self/ns/pid", pid_namespace, sizeof pid_namespace);
  if (!(file >> boot) || n <= 0) return "";
  return absl::StrCat(boot, "/", std::string(pid_namespace, static_cast<size_t>(n)),
                      "/uid:", geteuid());
}

absl::StatusOr<TransportWorkers> TransportWorkers::Create(const std::vector<std::string>& lanes,
                                                          const std::string& net_devices) {
  if (lanes.empty()) return absl::InvalidArgumentError("lanes: must name \"shm\" or \"tcp\"");
  TransportWorkers w;
  ASSIGN_OR_RETURN(w.tcp_context,
                   UcxContext::Create({.transport = "tcp", .net_devices = net_devices}));
  ASSIGN_OR_RETURN(w.tcp, UcxWorker::Create(w.tcp_context.get()));
  for (const std::string& lane : lanes) {
    if (lane == "shm" && w.posix == nullptr) {
      ASSIGN_OR_RETURN(w.posix_context,
                       UcxContext::Create({.transport = "posix", .net_devices = ""}));
      ASSIGN_OR_RETURN(w.posix, UcxWorker::Create(w.posix_context.get()));
    } else if (lane != "tcp") {
      return absl::InvalidArgumentError(
          absl::StrCat("lanes: \"", lane, "\", must be \"shm\" or \"tcp\", each once"));
    }
  }
  return w;
}

}  // namespace switchyard
