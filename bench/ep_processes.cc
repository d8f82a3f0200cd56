#include "bench/ep_processes.h"

#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>

#include "bench/peer_text.h"
#include "common/status_macros.h"

namespace switchyard {
namespace {

using Json = nlohmann::ordered_json;
using Body = FunctionRef<absl::StatusOr<Json>(EpGroup& group, int rank)>;

// Hellos go over `fd`, by the parent.
absl::StatusOr<Json> RunRank(const EpGroupOptions& options, int fd, Body body) {
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

absl::StatusOr<std::vector<Json>> RunEpProcesses(EpGroupOptions options, Body body) {
  const int ranks = options.world;
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
      auto result = RunRank(options, fds[1], body);
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
