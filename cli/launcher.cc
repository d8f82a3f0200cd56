#include "cli/launcher.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "cli/api_key.h"
#include "cluster/grpc_server.h"
#include "common/file.h"
#include "common/status_macros.h"

namespace switchyard {
namespace {

constexpr absl::Duration kTurn = absl::Milliseconds(20);
constexpr int kFailedStartsMax = 10;  // in a row
constexpr absl::Duration kBackoffMin = absl::Milliseconds(100), kBackoffMax = absl::Seconds(5);
// A child that has drained still has to end: then it is killed.
constexpr absl::Duration kEndGrace = absl::Seconds(10);

}  // namespace

void Launcher::Say(const std::string& line) const {
  if (options_.json_log != nullptr) return options_.json_log->Warning(line);
  std::fprintf(stderr, "serve: %s\n", line.c_str());
}

absl::StatusOr<int> Launcher::Run() {
  sigemptyset(&signals_);
  for (const int s : {SIGINT, SIGTERM, SIGHUP}) sigaddset(&signals_, s);
  pthread_sigmask(SIG_BLOCK, &signals_, nullptr);

  // A file of an earlier run would tell of processes that are no more.
  if (!options_.ready_file.empty()) unlink(options_.ready_file.c_str());
  absl::Status up = StartWorkers();
  if (up.ok()) up = AwaitReady();
  if (up.ok()) up = StartRouter();
  if (up.ok()) up = AwaitReady();
  if (absl::IsCancelled(up)) return Stop();
  RETURN_IF_ERROR(up);
  RETURN_IF_ERROR(Announce());
  while (NextSignal(kTurn) == 0) RETURN_IF_ERROR(Watch());
  return Stop();
}

int Launcher::NextSignal(absl::Duration timeout) const {
  const timespec t = absl::ToTimespec(timeout);
  return std::max(0, sigtimedwait(&signals_, nullptr, &t));
}

std::vector<std::string> Launcher::WorkerArguments(const Member& member) const {
  std::vector<std::string> arguments = {options_.model, absl::StrCat("--port=", member.port),
                                        absl::StrCat("--metrics-port=", member.metrics_port)};
  for (const auto* more : {&options_.worker_arguments, &member.group_arguments}) {
    arguments.insert(arguments.end(), more->begin(), more->end());
  }
  return arguments;
}

std::vector<std::string> Launcher::RouterArguments() const {
  std::vector<std::string> arguments = {
      options_.model, absl::StrCat("--host=", options_.host),
      absl::StrCat("--port=", http_port_ != 0 ? http_port_ : options_.port),
      absl::StrCat("--grpc-port=", grpc_port_ != 0 ? grpc_port_ : options_.grpc_port)};
  for (const Member& m : members_) {
    if (m.child->role() == "router") continue;
    arguments.push_back(
        absl::StrCat("--", m.child->role(), "-address=127.0.0.1:", m.child->ready()->port));
  }
  arguments.insert(arguments.end(), options_.router_arguments.begin(),
                   options_.router_arguments.end());
  return arguments;
}

absl::Status Launcher::StartWorkers() {
  for (int g = 0; g < options_.prefill; ++g) {
    RETURN_IF_ERROR(StartGroup("prefill", g, options_.prefill_ep, options_.prefill_tp));
  }
  for (int g = 0; g < options_.decode; ++g) {
    RETURN_IF_ERROR(StartGroup("decode", g, options_.decode_ep, 1));
  }
  return absl::OkStatus();
}

absl::Status Launcher::StartGroup(const std::string& role, int group, int ranks, int tensor_ranks) {
  std::vector<int> ports(ranks);
  std::vector<std::string> shared;
  if (ranks > 1) {  // they must know each other's ports before they start
    ASSIGN_OR_RETURN(ReservedPorts reserved, ReservedPorts::Any(ranks));
    ports = reserved.ports();
    reserved_.push_back(std::move(reserved));
    shared = options_.group_arguments;
    std::vector<std::string> peers;
    for (const int port : ports) peers.push_back(absl::StrCat("127.0.0.1:", port));
    shared.push_back(absl::StrCat("--ep-peers=", absl::StrJoin(peers, ",")));
    if (tensor_ranks > 1) shared.push_back(absl::StrCat("--tp=", tensor_ranks));
    if (!options_.threads_given) {
      const auto cores = static_cast<int>(std::thread::hardware_concurrency());
      shared.push_back(absl::StrCat("--threads=", std::max(1, cores / ranks)));
    }
  }
  for (int rank = 0; rank < ranks; ++rank) {
    Member member{.child = nullptr, .port = ports[rank], .group_arguments = shared};
    if (ranks > 1) member.group_arguments.push_back(absl::StrCat("--ep-rank=", rank));
    const int nice = role == "prefill" ? options_.prefill_nice : options_.decode_nice;
    if (nice > 0) member.group_arguments.push_back(absl::StrCat("--nice=", nice));
    if (options_.devices > 1) {
      const int n = static_cast<int>(members_.size()) % options_.devices;
      member.group_arguments.push_back(absl::StrCat("--device-index=", options_.first_device + n));
    }
    const int number = group * ranks + rank;
    if (options_.metrics_port_base != 0) {
      member.metrics_port =
          options_.metrics_port_base + (role == "decode" ? kDecodeMetrics : 0) + number;
    }
    member.child = std::make_unique<Child>(role, number, WorkerArguments(member));
    members_.push_back(std::move(member));
    RETURN_IF_ERROR(members_.back().child->Start());
  }
  return absl::OkStatus();
}

absl::Status Launcher::StartRouter() {
  auto router = std::make_unique<Child>("router", 0, RouterArguments());
  members_.push_back({.child = std::move(router)});
  return members_.back().child->Start();
}

absl::Status Launcher::AwaitReady() {
  for (;;) {
    bool all = true;
    for (Member& m : members_) {
      RETURN_IF_ERROR(m.child->PollReady(clock_.Now()).status());
      all = all && m.child->ready().has_value();
      if (const auto how = m.child->PollExit()) {
        return absl::UnavailableError(absl::StrCat(m.child->name(), " ", *how, " at its start"));
      }
    }
    if (all) return absl::OkStatus();
    if (NextSignal(kTurn) != 0) return absl::CancelledError("interrupted");
  }
}

absl::Status Launcher::Announce() {
  for (Member& m : members_) {
    const ChildReady& ready = *m.child->ready();
    if (m.child->role() == "router") {
      http_port_ = ready.port;
      grpc_port_ = ready.grpc_port;
      m.child->set_arguments(RouterArguments());  // a new one takes the same ports
    } else {
      m.port = ready.port;
      m.metrics_port = ready.metrics_port;
      m.child->set_arguments(WorkerArguments(m));
    }
  }
  const std::string url = HttpUrl();
  const auto pool = [](int groups, int ranks, int tensor_ranks, const char* role) {
    return absl::StrCat(groups, " ", role, ranks > 1 ? absl::StrCat(" of EP ", ranks) : "",
                        tensor_ranks > 1 ? absl::StrCat(" and TP ", tensor_ranks) : "");
  };
  std::printf("Switchyard serves %s: %s, %s, KV lane %s\n", options_.model.c_str(),
              pool(options_.prefill, options_.prefill_ep, options_.prefill_tp, "prefill").c_str(),
              pool(options_.decode, options_.decode_ep, 1, "decode").c_str(),
              options_.kv_lane.c_str());
  std::printf("  HTTP  %s\n  gRPC  %s\n", url.c_str(), HostPort(options_.host, grpc_port_).c_str());
  std::error_code ignored;
  const bool takes_text = std::filesystem::exists(options_.model + "/tokenizer.json", ignored);
  std::printf(
      "  curl -N %s/v1/completions -H 'Content-Type: application/json' "
      "-d '{\"prompt\": %s, \"max_tokens\": 64, \"stream\": true}'\n",
      url.c_str(), takes_text ? "\"Once upon a time\"" : "[1, 2, 3]");
  std::fflush(stdout);
  return WriteReadyFile();
}

std::string Launcher::HttpUrl() const {
  return absl::StrCat(options_.tls ? "https://" : "http://", HostPort(options_.host, http_port_));
}

absl::Status Launcher::WriteReadyFile() const {
  if (options_.ready_file.empty()) return absl::OkStatus();
  const bool local = options_.metrics_host.empty() || IsWildcard(options_.metrics_host);
  const std::string metrics_host = local ? "127.0.0.1" : options_.metrics_host;
  nlohmann::ordered_json file;
  file["http_url"] = HttpUrl();
  file["grpc_address"] = HostPort(options_.host, grpc_port_);
  file["processes"] = nlohmann::ordered_json::array();
  for (const Member& m : members_) {
    nlohmann::ordered_json process = {{"role", m.child->role()}, {"rank", m.child->rank()}};
    if (m.child->pid() != 0) process["pid"] = m.child->pid();
    if (m.child->role() == "router") {
      process["url"] = file["http_url"];
    } else if (m.child->ready().has_value()) {
      process["address"] = absl::StrCat("127.0.0.1:", m.child->ready()->port);
      process["metrics_url"] = absl::StrCat(
          "http://", HostPort(metrics_host, m.child->ready()->metrics_port), "/metrics");
    }
    file["processes"].push_back(std::move(process));
  }
  return WriteFileAtomically(options_.ready_file, file.dump(2) + "\n");
}

absl::Status Launcher::Watch() {
  bool changed = false;
  for (Member& m : members_) {
    const absl::Time now = clock_.Now();
    if (now >= m.restart_at) {
      m.restart_at = absl::InfiniteFuture();
      m.killed = false;
      if (const absl::Status s = m.child->Start(); !s.ok()) OnEnded(m, s.ToString(), now);
    }
    if (Listen(m, now)) {
      Say(absl::StrCat(m.child->name(), " is back as process ", m.child->pid()));
      changed = true;
    }
    if (const auto how = m.child->PollExit()) OnEnded(m, *how, now);
    if (m.failed_starts > kFailedStartsMax) {
      return absl::UnavailableError(
          absl::StrCat(m.child->name(), " ended ", m.failed_starts, " times before it was ready"));
    }
  }
  return changed ? WriteReadyFile() : absl::OkStatus();
}

bool Launcher::Listen(Member& m, absl::Time now) {
  const absl::StatusOr<bool> ready = m.child->PollReady(now);
  const bool hangs = options_.hang > absl::ZeroDuration() && !m.child->Alive(now, options_.hang);
  if ((!ready.ok() || hangs) && m.child->pid() != 0 && !std::exchange(m.killed, true)) {
    Say(absl::StrCat(m.child->name(), " does not answer: killed"));
    m.child->Signal(SIGKILL);
  }
  return ready.ok() && *ready;
}

void Launcher::OnEnded(Member& m, const std::string& how, absl::Time now) {
  // At once if it was up, else later and later.
  m.failed_starts = m.child->ready().has_value() ? 0 : m.failed_starts + 1;
  const int doublings = std::clamp(m.failed_starts - 1, 0, 6);
  const absl::Duration wait = m.failed_starts == 0
                                  ? absl::ZeroDuration()
                                  : std::min(kBackoffMax, kBackoffMin * (int64_t{1} << doublings));
  m.restart_at = now + wait;
  Say(absl::StrCat(m.child->name(), " ", how, ": starting it again in ",
                   absl::FormatDuration(wait)));
}

bool Launcher::AnyLeft(const std::string& role) {
  bool left = false;
  for (Member& m : members_) {
    Listen(m, clock_.Now());
    m.child->PollExit();
    left = left || (m.child->pid() != 0 && (role.empty() || m.child->role() == role));
  }
  return left;
}

// The router first: it lets running requests finish, which needs the workers.
int Launcher::Stop() {
  if (!options_.ready_file.empty()) unlink(options_.ready_file.c_str());
  const absl::Time end = clock_.Now() + options_.drain + kEndGrace;
  for (const std::string role : {"router", ""}) {
    for (Member& m : members_) {
      if (role.empty() || m.child->role() == role) m.child->Signal(SIGTERM);
    }
    while (AnyLeft(role)) {
      if (NextSignal(kTurn) == 0 && clock_.Now() < end) continue;
      Say("stopping at once");
      members_.clear();  // kills
      return 0;
    }
  }
  return 0;
}

}  // namespace switchyard
