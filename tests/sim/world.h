// tests/sim/world.h: everything that a run consists of, and who notices whose end.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "common/telemetry/log.h"
#include "router/metrics.h"
#include "tests/sim/sim_model.h"
#include "tests/sim/sim_net.h"

namespace switchyard::sim {

class Router;
class Worker;

// Something that is open between two nodes. When the peer's process dies, or (with keepalive) is
// out of reach for two seconds, that end's on_break is called, once.
struct Connection {
  int ends[2] = {0, 0};
  bool keepalive = true;
  std::function<void(const absl::Status&)> on_break[2];  // by end; each may be empty
};

// What runs share: nothing here changes a run.
struct Shared {
  SimModel model;
  RouterMetrics metrics{"sim"};
  Logger log{"sim", LogLevel::kError, LogFormat::kText};
};

struct World {
  World(uint64_t seed, Shared* shared, int prefill, int decode);
  ~World();

  int workers() const { return prefill + decode; }
  bool is_prefill(int node) const { return node >= 1 && node <= prefill; }
  static std::string AddressOf(int node) { return absl::StrCat("n", node, ":1"); }
  // 0 if it is no worker's.
  int NodeAt(const std::string& address) const;
  Worker* WorkerAt(int node, uint64_t life);  // null: that process is gone

  void Register(const std::shared_ptr<Connection>& connection) {
    connections.push_back(connection);
  }
  // Nothing has failed yet, or the last fault was a while ago: no request may have an error.
  bool calm() const { return loop.Now() < first_fault || loop.Now() > calm_from; }
  // Besides, no attempt and no worker may be given up, but for want of room. A wire that lost a
  // credit shows it no earlier than at the next hand-off.
  bool undisturbed() const { return calm() && (loop.Now() < first_fault || !wire_was_bad); }
  void StartProcess(int node);
  // Its connections break, its memory is gone. Nothing if none runs.
  void EndProcess(int node);
  // Both ends notice that they do not reach each other any more.
  void BreakBetween(int a, int b);
  // The first broken promise ends the run.
  void Fail(const std::string& what) {
    loop.Log("VIOLATION: ", what);
    if (violation.empty()) violation = what;
  }

  Loop loop;
  Shared& shared;
  const int prefill, decode;
  Network network;
  std::vector<std::unique_ptr<Node>> nodes;
  std::vector<std::weak_ptr<Connection>> connections;
  std::vector<std::unique_ptr<Worker>> processes;  // by node; [0] is empty
  std::unique_ptr<Router> router;
  std::function<void()> on_router_end;  // its clients see their connections close
  int kv_blocks = 0;                    // of each worker
  bool long_steps = false;              // some of an engine's steps take seconds: no fault
  absl::Time first_fault = absl::InfiniteFuture(), calm_from = absl::InfiniteFuture();
  bool wire_was_bad = false;
  std::string violation;
  uint64_t frames_spoilt = 0, stale_frames = 0;      // sent; refused by receivers
  uint64_t blocks_shared = 0;                        // of prefixes that were there: not sent
  std::map<uint64_t, std::weak_ptr<void>> segments;  // ring segments, by address
};

}  // namespace switchyard::sim
