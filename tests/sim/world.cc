#include "tests/sim/world.h"

#include <utility>

#include "absl/strings/numbers.h"
#include "tests/sim/sim_router.h"
#include "tests/sim/sim_worker.h"

namespace switchyard::sim {

World::World(uint64_t seed, Shared* shared, int prefill, int decode)
    : loop(seed),
      shared(*shared),
      prefill(prefill),
      decode(decode),
      network(&loop, 1 + prefill + decode),
      processes(1 + prefill + decode) {
  for (int i = 0; i <= workers(); ++i) {
    nodes.push_back(std::make_unique<Node>(&loop));
    nodes.back()->id = i;
    nodes.back()->name = i == 0 ? "router" : absl::StrCat(is_prefill(i) ? "P" : "D", i);
  }
}

World::~World() = default;

int World::NodeAt(const std::string& address) const {
  int node = 0;
  const size_t colon = address.find(':');
  if (address.size() < 2 || colon == std::string::npos ||
      !absl::SimpleAtoi(address.substr(1, colon - 1), &node) || node < 1 || node > workers()) {
    return 0;
  }
  return node;
}

Worker* World::WorkerAt(int node, uint64_t life) {
  return nodes[node]->life == life ? processes[node].get() : nullptr;
}

void World::StartProcess(int n) {
  Node& node = *nodes[n];
  if (node.life != 0) return;
  node.life = ++node.lives;
  node.hung_until = node.stuck_until = absl::InfinitePast();
  loop.Log(node.name, " starts, life ", node.life);
  if (n == 0) {
    router = std::make_unique<Router>(this);
  } else {
    processes[n] = std::make_unique<Worker>(this, &node);
  }
}

void World::EndProcess(int n) {
  Node& node = *nodes[n];
  if (node.life == 0) return;
  loop.Log(node.name, " ends, life ", node.life);
  node.life = 0;
  if (n == 0) {
    on_router_end();
    router.reset();
  } else {
    processes[n].reset();
  }
  const absl::Status why = absl::UnavailableError("the peer's process is gone");
  std::erase_if(connections, [](const auto& c) { return c.expired(); });
  for (const auto& weak : connections) {
    const std::shared_ptr<Connection> c = weak.lock();
    for (int end : {0, 1}) {
      if (c->ends[1 - end] != n || c->ends[end] == n) continue;
      // The kernel says so at once, if its word gets through.
      absl::Time at = network.Arrival(n, c->ends[end]) +
                      loop.random().Between(absl::ZeroDuration(), absl::Milliseconds(7));
      if (network.blocked(n, c->ends[end]) && c->keepalive) {
        at = std::min(at, loop.Now() + absl::Milliseconds(2300));
      }
      loop.At(at, [weak, end, why] {
        const std::shared_ptr<Connection> c = weak.lock();
        if (c && c->on_break[end]) std::exchange(c->on_break[end], nullptr)(why);
      });
    }
  }
}

void World::BreakBetween(int a, int b) {
  const std::vector<std::weak_ptr<Connection>> all = connections;
  for (const auto& weak : all) {
    const std::shared_ptr<Connection> c = weak.lock();
    if (!c || !c->keepalive) continue;
    if (!((c->ends[0] == a && c->ends[1] == b) || (c->ends[0] == b && c->ends[1] == a))) continue;
    for (int end : {0, 1}) {
      if (!c->on_break[end]) continue;
      std::exchange(c->on_break[end], nullptr)(absl::UnavailableError("keepalive timed out"));
    }
  }
}

}  // namespace switchyard::sim
