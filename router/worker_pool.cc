#include "router/worker_pool.h"

#include <algorithm>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"

namespace switchyard {
namespace pb = cluster::v1;

WorkerPool::WorkerPool(const MembershipOptions& membership, WorkerPoolEvents events,
                       WorkerLinks* links, const Clock* clock, Logger* log)
    : events_(std::move(events)),
      links_(links),
      clock_(clock),
      log_(log),
      membership_(membership) {}

void WorkerPool::SetAddresses(pb::Role role, const std::vector<std::string>& addresses) {
  std::set<std::string> missing(addresses.begin(), addresses.end());
  for (auto& [n, slot] : slots_) {
    if (slot.role == role) slot.listed = missing.erase(slot.address) > 0;
  }
  for (const std::string& address : addresses) {
    if (missing.erase(address) == 0) continue;
    Slot slot;
    slot.address = address;
    slot.role = role;
    slots_.emplace(next_slot_, std::move(slot));
    links_->Dial(next_slot_++, address);
  }
  ForgetUnlisted();
}

void WorkerPool::ForgetUnlisted() {
  for (auto it = slots_.begin(); it != slots_.end();) {
    if (it->second.listed || it->second.id) {
      ++it;
      continue;
    }
    links_->Forget(it->first);
    membership_.Forget(it->second.address);
    it = slots_.erase(it);
  }
}

int WorkerPool::Addresses(pb::Role role) const {
  return static_cast<int>(std::count_if(slots_.begin(), slots_.end(),
                                        [&](const auto& s) { return s.second.role == role; }));
}

void WorkerPool::OnRegistered(size_t n, StreamId stream, const pb::Registration& registration) {
  const auto it = slots_.find(n);
  if (it == slots_.end()) return;  // forgotten, but its client was still dialling
  Slot& slot = it->second;
  slot.stream = stream;
  absl::StatusOr<WorkerId> id =
      membership_.Register(slot.address, slot.role, registration, clock_->Now());
  if (!id.ok()) {
    if (slot.last_refusal != id.status().message()) {
      slot.last_refusal = std::string(id.status().message());
      log_->Error(slot.last_refusal);
    }
    links_->Cancel(n, stream);
    return;
  }
  slot.last_refusal.clear();
  slot.id = *id;
  loads_[*id].slot = n;
  loads_[*id].block_tokens = registration.block_tokens();
  log_->Info("worker registered", {{"address", slot.address},
                                   {"role", pb::Role_Name(slot.role)},
                                   {"incarnation", registration.incarnation()},
                                   {"numerics", registration.numerics_id()}});
  events_.changed();
}

WorkerPool::Slot* WorkerPool::SlotOf(size_t n, StreamId stream) {
  const auto it = slots_.find(n);
  return it == slots_.end() || it->second.stream != stream || !it->second.id ? nullptr
                                                                             : &it->second;
}

void WorkerPool::OnEvents(size_t n, StreamId stream, const pb::StepEvents& events) {
  Slot* const found = SlotOf(n, stream);
  if (found == nullptr) return;
  Slot& slot = *found;
  membership_.Heard(*slot.id, clock_->Now());
  events_.events(*slot.id, events);
}

void WorkerPool::OnHeartbeat(size_t n, StreamId stream, const pb::Heartbeat& heartbeat) {
  Slot* const found = SlotOf(n, stream);
  if (found == nullptr) return;
  Slot& slot = *found;
  const pb::Heartbeat& before = membership_.Find(*slot.id)->heartbeat;
  const auto more = [](uint64_t now, uint64_t then) { return now > then ? now - then : 0; };
  events_.counted({.preemptions = more(heartbeat.preemptions(), before.preemptions()),
                   .prefix_queries = more(heartbeat.prefix_queries(), before.prefix_queries()),
                   .prefix_hits = more(heartbeat.prefix_hits(), before.prefix_hits())});
  membership_.Beat(*slot.id, heartbeat, clock_->Now());
  Load& load = loads_[*slot.id];
  load.freed_blocks = 0;
  std::erase_if(load.promised, [](const auto& entry) { return entry.second.settled; });
  events_.changed();
}

void WorkerPool::OnLost(size_t n, StreamId stream, const absl::Status& why) {
  Slot* const found = SlotOf(n, stream);
  if (found == nullptr) return;
  Slot& slot = *found;
  const WorkerId id = *std::exchange(slot.id, std::nullopt);
  membership_.Remove(id);
  loads_.erase(id);
  slot.breaker.OnFault(clock_->Now());
  const std::string address = slot.address;
  ForgetUnlisted();
  log_->Warning("worker lost", {{"address", address}, {"why", why.message()}});
  events_.lost(id, why);
  events_.changed();
}

void WorkerPool::Tick() {
  for (const Membership::Expired& expired : membership_.Expire(clock_->Now())) {
    auto it = loads_.find(expired.id);
    if (it == loads_.end()) continue;
    const size_t slot = it->second.slot;
    const StreamId stream = slots_.at(slot).stream;
    links_->Cancel(slot, stream);
    OnLost(slot, stream,
           absl::UnavailableError(absl::StrCat("worker ", expired.address, " ", expired.reason)));
  }
}

bool WorkerPool::Send(WorkerId worker, pb::ToWorker message) {
  Load* load = LoadOf(worker);
  if (load == nullptr) return false;
  return links_->Send(load->slot, slots_.at(load->slot).stream, std::move(message));
}

int WorkerPool::Ready(pb::Role role) const {
  return static_cast<int>(
      std::count_if(membership_.members().begin(), membership_.members().end(), [=](const auto& m) {
        return m.second.registration.role() == role && !m.second.heartbeat.draining() &&
               !m.second.suspect;
      }));
}

double WorkerPool::KvUsage() const {
  double total = 0, available = 0;
  for (const auto& [id, m] : membership_.members()) {
    if (m.registration.role() != pb::ROLE_DECODE) continue;
    total += m.registration.kv_blocks_total();
    available += m.kv_blocks_available();
  }
  return total > 0 ? 1 - available / total : 0;
}

std::vector<WorkerStatus> WorkerPool::Status() const {
  std::vector<WorkerStatus> out;
  for (const auto& [n, slot] : slots_) {
    WorkerStatus s{.address = slot.address,
                   .role = slot.role == pb::ROLE_PREFILL ? "prefill" : "decode"};
    const Member* m = slot.id ? membership_.Find(*slot.id) : nullptr;
    if (m != nullptr) {
      s.alive = true;
      s.running = m->heartbeat.running();
      s.waiting = m->heartbeat.waiting();
      s.kv_blocks_free = m->heartbeat.kv_blocks_free();
      s.kv_blocks_cached = m->heartbeat.kv_blocks_cached();
      s.kv_blocks_total = m->registration.kv_blocks_total();
      s.kv_blocks_leased = m->heartbeat.kv_blocks_leased();
      s.kv_blocks_quarantined = m->heartbeat.kv_blocks_quarantined();
      s.steps = m->heartbeat.steps();
    }
    out.push_back(std::move(s));
  }
  return out;
}

std::vector<PrefillView> WorkerPool::PrefillViews() const {
  std::vector<PrefillView> out;
  for (const auto& [id, m] : membership_.members()) {
    if (m.registration.role() != pb::ROLE_PREFILL) continue;
    out.push_back({.id = id,
                   .draining = m.heartbeat.draining(),
                   .trusted = Trusted(m),
                   .queued_tokens = loads_.at(id).queued_tokens});
  }
  return out;
}

std::vector<DecodeView> WorkerPool::DecodeViews(int priority) const {
  std::vector<DecodeView> out;
  for (const auto& [id, m] : membership_.members()) {
    if (m.registration.role() != pb::ROLE_DECODE) continue;
    const Load& load = loads_.at(id);
    int64_t promised = -load.freed_blocks;
    for (const auto& [request, promise] : load.promised) promised += promise.blocks;
    int unserved = 0;
    int64_t unserved_tokens = 0, yielding = 0;
    for (const auto& [request, attempt] : load.running) {
      if (attempt.priority > priority) {
        yielding += attempt.blocks;
      } else if (load.unserved.contains(request)) {
        ++unserved;
        unserved_tokens += attempt.tokens;
      }
    }
    out.push_back({.id = id,
                   .draining = m.heartbeat.draining(),
                   .trusted = Trusted(m),
                   .takes_handoffs = !m.registration.handoff_address().empty(),
                   .running = static_cast<int>(load.running.size()),
                   .unserved = unserved,
                   .unserved_tokens = unserved_tokens,
                   .kv_blocks_total = m.registration.kv_blocks_total(),
                   .kv_blocks_available = m.kv_blocks_available(),
                   .kv_blocks_promised = promised,
                   .kv_blocks_yielding = yielding,
                   .block_tokens = m.registration.block_tokens()});
  }
  return out;
}

std::optional<Route> WorkerPool::Choose(Disaggregate mode, const RouteRequest& request) const {
  return ChooseRoute(mode, request, PrefillViews(), DecodeViews(request.priority));
}

WorkerPool::Load* WorkerPool::LoadOf(WorkerId worker) {
  auto it = loads_.find(worker);
  return it == loads_.end() ? nullptr : &it->second;
}

bool WorkerPool::Trusted(const Member& member) const {
  return !member.suspect && slots_.at(loads_.at(member.id).slot).breaker.Allows(clock_->Now());
}

void WorkerPool::Succeeded(WorkerId worker) {
  if (Load* load = LoadOf(worker)) slots_.at(load->slot).breaker.OnSuccess();
}

void WorkerPool::Failed(WorkerId worker) {
  if (Load* load = LoadOf(worker)) slots_.at(load->slot).breaker.OnFault(clock_->Now());
}

void WorkerPool::Assign(uint64_t request, const Route& route, int64_t tokens, int priority) {
  if (Load* load = LoadOf(route.decode)) {
    slots_.at(load->slot).breaker.OnStart(clock_->Now());
    const int64_t blocks = BlocksFor(tokens, load->block_tokens);
    load->running[request] = {priority, tokens, blocks};
    load->unserved.insert(request);
    load->promised[request] = {blocks, false};
  }
  if (!route.prefill) return;
  if (Load* load = LoadOf(*route.prefill)) {
    slots_.at(load->slot).breaker.OnStart(clock_->Now());
    load->queued_tokens += tokens;
    load->queued[request] = tokens;
  }
}

void WorkerPool::FirstToken(uint64_t request, const Route& route) {
  Load* load = LoadOf(route.decode);
  if (load == nullptr) return;
  if (auto it = load->promised.find(request); it != load->promised.end()) it->second.settled = true;
}

void WorkerPool::Served(uint64_t request, WorkerId decode) {
  if (Load* load = LoadOf(decode)) load->unserved.erase(request);
}

void WorkerPool::PrefillDone(uint64_t request, const Route& route) {
  Load* load = route.prefill ? LoadOf(*route.prefill) : nullptr;
  if (load == nullptr) return;
  if (auto it = load->queued.find(request); it != load->queued.end()) {
    load->queued_tokens -= it->second;
    load->queued.erase(it);
  }
}

void WorkerPool::Release(uint64_t request, const Route& route, int64_t tokens) {
  PrefillDone(request, route);
  Load* load = LoadOf(route.decode);
  if (load == nullptr) return;
  load->running.erase(request);
  load->unserved.erase(request);
  // A promise that no heartbeat has counted is simply withdrawn.
  if (load->promised.erase(request) > 0) return;
  load->freed_blocks += BlocksFor(tokens, load->block_tokens);
}

}  // namespace switchyard
