#include "tests/sim/simulation.h"

#include <algorithm>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "tests/sim/sim_router.h"
#include "tests/sim/sim_worker.h"

namespace switchyard::sim {
namespace {

// How long after the last fault every request must have ended, and everything be at rest.
constexpr absl::Duration kCalm = absl::Seconds(100), kRest = absl::Seconds(90);
constexpr uint64_t kEventsMax = 1'000'000;  // some hundred times what a run takes

struct Client {
  int number = 0;
  ClientRequest request;
  std::vector<TokenId> expected;
  size_t received = 0;
  uint64_t router_life = 0, router_number = 0;
  bool probe = false;    // nothing fails any more: it must succeed
  bool aborted = false;  // by the client
  bool over = false;
};

class Simulation {
 public:
  Simulation(uint64_t seed, Shared* shared, const RunOptions& options)
      : choice_(seed), world_(choice_.Next(), shared, choice_.Int(0, 2), choice_.Int(1, 3)) {
    if (options.keep_log) world_.loop.KeepLog();
    world_.kv_blocks = choice_.Int(14, 40);
    world_.long_steps = choice_.Chance(0.15);
    result_.faults = DrawFaults(world_.prefill, world_.workers(), &choice_);
    if (options.faults) result_.faults = *options.faults;
  }

  RunResult Run() {
    world_.on_router_end = [this] { OnRouterEnd(); };
    for (int n = 0; n <= world_.workers(); ++n) world_.StartProcess(n);
    for (const Fault& f : result_.faults) {
      world_.loop.Log("planned: ", Describe(f));
      world_.loop.After(kStart + f.at, [this, f] { Inject(f); });
      calm_at_ = std::max(calm_at_, f.at + f.lasts);
      world_.wire_was_bad |= f.kind == Fault::Kind::kBadWire;
      world_.first_fault = std::min(world_.first_fault, absl::UnixEpoch() + kStart + f.at);
    }
    // Workers dial anew within 500 ms, and the router must have noticed all that happened.
    world_.calm_from = absl::UnixEpoch() + kStart + calm_at_ + absl::Seconds(8);
    const int count = choice_.Int(2, 8);
    for (int i = 0; i < count; ++i) {
      AddClient(kStart + choice_.Between(absl::ZeroDuration(), choice_.Chance(0.7)
                                                                   ? absl::Milliseconds(250)
                                                                   : absl::Seconds(3)),
                /*probe=*/false);
    }
    Until(world_.calm_from, [this] { return result_.faults.empty() && AllOver(); });
    Until(world_.calm_from + kCalm, [this] { return AllOver(); });
    if (!AllOver()) world_.Fail(absl::StrCat("not all requests ended: ", FirstOpen()));
    Probe();
    Rest();
    result_.violation = world_.violation;
    result_.log = world_.loop.log();
    result_.events = world_.loop.events();
    result_.frames_spoilt = world_.frames_spoilt;
    result_.stale_frames = world_.stale_frames;
    result_.blocks_shared = world_.blocks_shared;
    return std::move(result_);
  }

 private:
  static constexpr absl::Duration kStart = absl::Seconds(1);  // all have dialled by then

  template <typename Done>
  void Until(absl::Time end, const Done& done) {
    while (world_.violation.empty() && !done() && world_.loop.RunOne(end)) {
      if (world_.loop.events() > kEventsMax) world_.Fail("a thread spins");
    }
  }

  void Inject(const Fault& f);
  void BreakIfLong(const Fault& f, int a, int b);
  void Restart(int node, absl::Duration after) {
    world_.loop.After(after, [this, node] { world_.StartProcess(node); });
  }

  void AddClient(absl::Duration after, bool probe);
  void Submit(Client* c);
  void OnUpdate(Client* c, const ClientUpdate& u);
  void OnEnd(Client* c, const ClientUpdate& u);
  void OnRouterEnd();
  void Probe();
  void Rest();

  bool AllOver() const {
    return std::all_of(clients_.begin(), clients_.end(), [](const auto& c) { return c->over; });
  }
  std::string FirstOpen() const {
    for (const auto& c : clients_) {
      if (!c->over) {
        return absl::StrCat("request ", c->number, " has ", c->received, " of ", c->expected.size(),
                            " tokens");
      }
    }
    return "";
  }

  Random choice_;
  RunResult result_;
  absl::Duration calm_at_;
  std::vector<std::unique_ptr<Client>> clients_;
  World world_;  // last: its events refer to the rest
};

void Simulation::BreakIfLong(const Fault& f, int a, int b) {
  if (f.lasts < absl::Milliseconds(2000)) return;
  world_.loop.After(world_.loop.random().Between(absl::Milliseconds(2000), f.lasts),
                    [this, a, b] { world_.BreakBetween(a, b); });
}

void Simulation::Inject(const Fault& f) {
  Node& node = *world_.nodes[f.node];
  const absl::Time until = world_.loop.Now() + f.lasts;
  world_.loop.Log("fault: ", Describe(f));
  using Kind = Fault::Kind;
  switch (f.kind) {
    case Kind::kCrash:
      world_.EndProcess(f.node);
      return Restart(f.node, f.lasts);
    case Kind::kHang:
      node.hung_until = std::max(node.hung_until, until);
      for (int n = 0; n <= world_.workers(); ++n) {
        if (n != f.node) BreakIfLong(f, f.node, n);
      }
      return;
    case Kind::kSlow:
      node.slow_until = std::max(node.slow_until, until);
      return;
    case Kind::kStuck:
      node.stuck_until = std::max(node.stuck_until, until);
      return;
    case Kind::kClockJump:
      return node.clock.Jump(f.lasts * 10);
    case Kind::kDrain: {
      Worker* worker = world_.WorkerAt(f.node, node.life);
      if (worker == nullptr) return;
      worker->Drain();
      const uint64_t life = node.life;
      for (absl::Duration d; d <= f.lasts; d += absl::Milliseconds(10)) {
        const bool last = d + absl::Milliseconds(10) > f.lasts;
        world_.loop.After(d, [this, life, last, n = f.node] {
          Worker* w = world_.WorkerAt(n, life);
          if (w == nullptr || (w->active() > 0 && !last)) return;
          world_.EndProcess(n);
          Restart(n, absl::Milliseconds(200));
        });
      }
      return;
    }
    case Kind::kPartition:
      world_.network.Block(f.node, f.peer, until);
      if (f.both) world_.network.Block(f.peer, f.node, until);
      return BreakIfLong(f, f.node, f.peer);
    case Kind::kSlowLink:
      world_.network.Slow(f.node, f.peer, until);
      return world_.network.Slow(f.peer, f.node, until);
    case Kind::kBadWire:
      world_.network.Spoil(f.node, f.peer, until);
      return world_.network.Spoil(f.peer, f.node, until);
  }
}

void Simulation::AddClient(absl::Duration after, bool probe) {
  auto client = std::make_unique<Client>();
  Client* c = client.get();
  c->number = static_cast<int>(clients_.size());
  c->probe = probe;
  ClientRequest& r = c->request;
  const int prompt = choice_.Int(1, 30);
  // Many begin alike: ranks may have their first blocks.
  const int alike = choice_.Chance(0.5) ? choice_.Int(0, prompt) : 0;
  std::vector<TokenId> ids;
  for (int i = 0; i < alike; ++i) ids.push_back(2 + i % (SimModel::kVocab - 2));
  for (int i = alike; i < prompt; ++i) ids.push_back(choice_.Int(2, SimModel::kVocab - 1));
  r.prompt_ids = std::move(ids);
  r.max_tokens = choice_.Chance(0.1) ? 1 : choice_.Int(1, 20);
  r.sampling.temperature = choice_.Chance(0.5) ? 0.0f : 1.0f;
  r.sampling.seed = choice_.Next();
  r.seed_given = true;
  r.ignore_eos = choice_.Chance(0.5);
  r.priority = choice_.Int(0, 1);
  r.deadline = absl::Minutes(2);
  c->expected = SimModel::Expected(r.prompt_ids, r.sampling, r.max_tokens, r.ignore_eos);
  const bool aborts = !probe && choice_.Chance(0.15);
  const absl::Duration patience = choice_.Between(absl::ZeroDuration(), absl::Milliseconds(400));
  clients_.push_back(std::move(client));
  world_.loop.After(after, [this, c] { Submit(c); });
  if (!aborts) return;
  world_.loop.After(after + patience, [this, c] {
    if (c->over || world_.nodes[0]->life != c->router_life) return;
    world_.loop.Log("client ", c->number, " goes away");
    c->aborted = true;
    world_.router->Abort(c->router_number);
  });
}

void Simulation::Submit(Client* c) {
  ++result_.requests;
  if (world_.router == nullptr) {
    c->over = true;  // connection refused: the client knows
    ++result_.failed;
    return;
  }
  const auto number =
      world_.router->Submit(c->request, [this, c](ClientUpdate u) { OnUpdate(c, u); });
  world_.loop.Log("client ", c->number, " asks for ", c->request.max_tokens, " tokens after ",
                  c->request.prompt_ids.size(), number ? "" : ": refused");
  if (!number) {
    if (world_.calm()) world_.Fail(absl::StrCat("request ", c->number, " is refused"));
    c->over = true;
    ++result_.failed;
    return;
  }
  c->router_life = world_.nodes[0]->life;
  c->router_number = *number;
}

void Simulation::OnUpdate(Client* c, const ClientUpdate& u) {
  if (c->over) return world_.Fail(absl::StrCat("request ", c->number, ": an update after its end"));
  for (const SampledToken& t : u.tokens) {
    if (c->received >= c->expected.size() || t.token != c->expected[c->received]) {
      return world_.Fail(absl::StrCat(
          "request ", c->number, ": token ", c->received, " is ", t.token, ", expected ",
          c->received < c->expected.size() ? absl::StrCat(c->expected[c->received]) : "none"));
    }
    ++c->received;
    ++result_.tokens;
  }
  if (u.finish != ClientUpdate::Finish::kNone) OnEnd(c, u);
}

void Simulation::OnEnd(Client* c, const ClientUpdate& u) {
  using Finish = ClientUpdate::Finish;
  c->over = true;
  world_.loop.Log("client ", c->number, " ends after ", c->received, " of ", c->expected.size(),
                  " tokens and ", u.attempts, " attempts: ", u.error.ToString());
  result_.retried += u.attempts > 1;
  const std::string name = absl::StrCat("request ", c->number);
  switch (u.finish) {
    case Finish::kStop:
    case Finish::kLength: {
      ++result_.completed;
      const bool stops = !c->request.ignore_eos && c->expected.back() == SimModel::kEos;
      if (c->received != c->expected.size() || stops != (u.finish == Finish::kStop)) {
        world_.Fail(absl::StrCat(name, ": the end came after ", c->received, " of ",
                                 c->expected.size(), " tokens, or for the wrong reason"));
      }
      return;
    }
    case Finish::kAbort:
      if (!c->aborted) world_.Fail(absl::StrCat(name, ": aborted by nobody"));
      return;
    default:
      break;
  }
  ++result_.failed;
  const bool honest = absl::IsUnavailable(u.error) || absl::IsResourceExhausted(u.error) ||
                      absl::IsDeadlineExceeded(u.error);
  if (world_.calm() || !honest) {
    world_.Fail(absl::StrCat(name, ": ", u.error.ToString()));
  }
}

void Simulation::OnRouterEnd() {
  for (const auto& c : clients_) {
    if (c->router_life != world_.nodes[0]->lives || c->over) continue;
    c->over = true;  // its connection closed: the client knows
    ++result_.failed;
  }
}

void Simulation::Probe() {
  if (!world_.violation.empty()) return;
  for (int i = 0; i < 2; ++i) AddClient(absl::ZeroDuration(), /*probe=*/true);
  // The first events submit them.
  Until(world_.loop.Now() + absl::Seconds(60), [this] { return AllOver(); });
  if (!AllOver()) world_.Fail(absl::StrCat("a new request does not end: ", FirstOpen()));
}

void Simulation::Rest() {
  std::string left;
  const auto at_rest = [&] {
    left = world_.router->requests() > 0 ? "the router has requests" : "";
    for (const auto& p : world_.processes) {
      if (p != nullptr && left.empty()) left = p->NotAtRest();
    }
    return left.empty();
  };
  int turn = 0;
  Until(world_.loop.Now() + kRest, [&] { return ++turn % 16 == 0 && at_rest(); });
  if (world_.violation.empty() && !at_rest()) world_.Fail(absl::StrCat("left behind: ", left));
}

}  // namespace

RunResult RunSeed(uint64_t seed, Shared* shared, const RunOptions& options) {
  return Simulation(seed, shared, options).Run();
}

RunResult Shrink(uint64_t seed, Shared* shared, const RunResult& result) {
  RunResult best = RunSeed(seed, shared, {.faults = result.faults, .keep_log = true});
  for (bool shorter = true; shorter && !best.violation.empty();) {
    shorter = false;
    for (size_t i = 0; i < best.faults.size(); ++i) {
      std::vector<Fault> fewer = best.faults;
      fewer.erase(fewer.begin() + static_cast<std::ptrdiff_t>(i));
      RunResult run = RunSeed(seed, shared, {.faults = fewer, .keep_log = true});
      if (run.violation.empty()) continue;
      best = std::move(run);
      shorter = true;
      break;
    }
  }
  return best;
}

}  // namespace switchyard::sim
