#include "bench/ep_processes.h"

#include <fcntl.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "bench/peer_text.h"
#include "common/status_macros.h"

namespace switchyard {
namespace {

using Json = nlohmann::ordered_json;
using Body = FunctionRef<absl::StatusOr<Json>(EpGroup& group, int rank)>;

// With a /sys of its own, where UCX looks for interfaces.
absl::Status EnterNamespace(const std::string& name) {
  const std::string path = absl::StrCat("/run/netns/", name);
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return absl::ErrnoToStatus(errno, path);
  const absl::Cleanup close_fd = [fd] { close(fd); };
  if (setns(fd, CLONE_NEWNET) != 0) return absl::ErrnoToStatus(errno, "to enter " + path);
  if (unshare(CLONE_NEWNS) != 0 || mount("", "/", "none", MS_SLAVE | MS_REC, nullptr) != 0 ||
      umount2("/sys", MNT_DETACH) != 0 || mount("sys", "/sys", "sysfs", 0, nullptr) != 0) {
    return absl::ErrnoToStatus(errno, "to mount a /sys of " + path);
  }
  return absl::OkStatus();
}

// Hellos go over `fd`, by the parent.
absl::StatusOr<Json> RunRank(const EpGroupOptions& options, int fd,
                             const std::vector<std::string>& namespaces, Body body) {
  if (!namespaces.empty()) RETURN_IF_ERROR(EnterNamespace(namespaces[options.rank]));
  static const MonotonicClock clock;
  ASSIGN_OR_RETURN(const auto group, EpGroup::Create(options, &clock));
  std::vector<std::optional<EpHello>> hellos(options.world);
  for (int p = 0; p < options.world; ++p) {
    if (p != options.rank) SendText(fd, EncodeEpHello(group->HelloFor(p)));
  }
  for (int p = 0; p < options.world; ++p) {
    if (p == options.rank) continue;
    ASSIGN_OR_RETURN(hellos[p], DecodeEpHello(ReceiveText(fd)));
  }
  RETURN_IF_ERROR(group->Connect(hellos));
  ASSIGN_OR_RETURN(Json said, body(*group, options.rank));
  RETURN_IF_ERROR(group->OpenStep({}).status());  // nobody leaves before the others are done
  return said;
}

}  // namespace

absl::StatusOr<std::vector<Json>> RunEpProcesses(EpGroupOptions options, Body body,
                                                 const std::vector<std::string>& namespaces) {
  const int ranks = options.world;
  if (!namespaces.empty() && namespaces.size() != static_cast<size_t>(ranks)) {
    return absl::InvalidArgumentError(
        absl::StrCat(namespaces.size(), " network namespaces for ", ranks, " ranks"));
  }
  std::vector<int> sockets;
  std::vector<pid_t> pids;
  for (int rank = 0; rank < ranks; ++rank) {
    int fds[2];
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, fds) != 0) {
      return absl::ErrnoToStatus(errno, "socketpair");
    }
    const pid_t pid = fork();
    if (pid < 0) return absl::ErrnoToStatus(errno, "fork");
    if (pid == 0) {
      for (const int fd : sockets) close(fd);
      close(fds[0]);
      options.rank = rank;
      auto result = RunRank(options, fds[1], namespaces, body);
      SendText(fds[1], result.ok() ? result->dump() : "error: " + result.status().ToString());
      _exit(0);
    }
    close(fds[1]);
    sockets.push_back(fds[0]);
    pids.push_back(pid);
  }
  std::vector<std::vector<std::string>> from(ranks, std::vector<std::string>(ranks));
  for (int r = 0; r < ranks; ++r) {
    for (int p = 0; p < ranks; ++p) {
      if (p != r) from[r][p] = ReceiveText(sockets[r]);
    }
  }
  for (int r = 0; r < ranks; ++r) {
    for (int p = 0; p < ranks; ++p) {
      if (p != r) SendText(sockets[r], from[p][r]);
    }
  }
  std::vector<Json> said;
  std::string failed;
  for (const int fd : sockets) {
    const std::string text = ReceiveText(fd);
    if (text.empty() || text[0] != '{') failed = "a rank failed: " + text;
    said.push_back(Json::parse(text, nullptr, /*allow_exceptions=*/false));
    close(fd);
  }
  for (const pid_t pid : pids) waitpid(pid, nullptr, 0);
  if (!failed.empty()) return absl::InternalError(failed);
  return said;
}

}  // namespace switchyard
