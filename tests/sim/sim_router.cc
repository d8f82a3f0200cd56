#include "tests/sim/sim_router.h"

#include <utility>

#include "common/check.h"
#include "router/worker_event.h"

namespace switchyard::sim {

namespace pb = cluster::v1;

Router::Router(World* world)
    : world_(*world),
      node_(world->nodes[0].get()),
      thread_(&world->loop, node_, [this] { Turn(); }),
      options_(MakeOptions()),
      conductor_(&options_, absl::StrCat("r", node_->life), MakeOutside()),
      streams_(world->workers()) {
  conductor_.workers().SetAddresses(pb::ROLE_PREFILL, options_.prefill_addresses);
  conductor_.workers().SetAddresses(pb::ROLE_DECODE, options_.decode_addresses);
  thread_.WakeAt(world_.loop.Now());
}

Router::~Router() {
  for (const auto& stream : streams_) {
    if (stream != nullptr) stream->up.Break();
  }
}

CoreOptions Router::MakeOptions() const {
  CoreOptions options;
  options.model.vocab_size = SimModel::kVocab;
  options.seed = world_.loop.random().Next();
  for (int i = 1; i <= world_.workers(); ++i) {
    (world_.is_prefill(i) ? options.prefill_addresses : options.decode_addresses)
        .push_back(World::AddressOf(i));
  }
  options.disaggregate =
      world_.loop.random().Chance(0.8) ? Disaggregate::kAlways : Disaggregate::kNever;
  return options;
}

Conductor::Outside Router::MakeOutside() {
  return {.links = this,
          .clock = &node_->clock,
          .log = &world_.shared.log,
          .metrics = &world_.shared.metrics,
          .ended = [](const std::string&) {}};
}

void Router::Turn() {
  conductor_.Turn();
  was_ready_ |= conductor_.workers().Ready(cluster::v1::ROLE_DECODE) > 0;
  const absl::Time next =
      std::min(conductor_.next_timer(), node_->clock.Now() + absl::Milliseconds(50));
  thread_.WakeAt(std::max(node_->clock.ToLoop(next), world_.loop.Now() + absl::Microseconds(10)));
}

std::optional<uint64_t> Router::Submit(ClientRequest request, RouterCore::Sink sink) {
  if (!was_ready_) return std::nullopt;
  const uint64_t number = next_number_++;
  thread_.Post([this, number, request = std::move(request), sink = std::move(sink)] {
    conductor_.Begin(number, absl::StrCat(number), request, sink);
  });
  return number;
}

void Router::Abort(uint64_t number) {
  thread_.Post([this, number] { conductor_.Abort(number); });
}

void Router::Dial(size_t slot, const std::string& address) {
  SY_CHECK(world_.NodeAt(address) == static_cast<int>(slot) + 1);
  DialLater(slot);
}

void Router::DialLater(size_t slot) {
  world_.loop.After(world_.loop.random().Between(absl::Milliseconds(1), absl::Milliseconds(500)),
                    [this, slot, alive = std::weak_ptr<int>(alive_)] {
                      if (!alive.expired()) DialNow(slot);
                    });
}

void Router::DialNow(size_t slot) {
  const int n = static_cast<int>(slot) + 1;
  const Node& peer = *world_.nodes[n];
  Network& network = world_.network;
  if (streams_[slot] != nullptr) return;
  if (peer.life == 0 || world_.loop.Now() < peer.hung_until || network.blocked(0, n) ||
      network.blocked(n, 0)) {
    return DialLater(slot);
  }
  auto stream = std::make_shared<Stream>(&world_, n, StreamId(next_stream_++));
  streams_[slot] = stream;
  Connection& c = *stream->connection;
  c.ends[0] = 0;
  c.ends[1] = n;
  c.on_break[0] = [this, slot, id = stream->id,
                   alive = std::weak_ptr<int>(alive_)](const absl::Status& why) {
    if (!alive.expired()) OnBreak(slot, id, why);
  };
  world_.Register(stream->connection);
  stream->down.Send([world = &world_, n, life = peer.life, stream] {
    if (Worker* worker = world->WorkerAt(n, life)) worker->OpenStream(stream);
  });
}

void Router::OnBreak(size_t slot, StreamId id, const absl::Status& why) {
  streams_[slot]->up.Break();
  streams_[slot]->down.Break();
  streams_[slot] = nullptr;
  thread_.Post([this, slot, id, why] { conductor_.workers().OnLost(slot, id, why); });
  DialLater(slot);
}

bool Router::Send(size_t slot, StreamId id, pb::ToWorker message) {
  const std::shared_ptr<Stream>& stream = streams_[slot];
  if (stream == nullptr || stream->id != id) return false;
  stream->down.Send([stream, message = std::move(message)] {
    if (stream->deliver) stream->deliver(message);
  });
  return true;
}

void Router::Cancel(size_t slot, StreamId id) {
  const std::shared_ptr<Stream> stream = streams_[slot];
  if (stream == nullptr || stream->id != id) return;
  if (world_.undisturbed()) {
    world_.Fail(absl::StrCat(world_.nodes[stream->worker]->name, " is given up, and lives"));
  }
  Connection& c = *stream->connection;
  world_.loop.At(world_.network.Arrival(0, stream->worker), [connection = stream->connection] {
    if (!connection->on_break[1]) return;
    std::exchange(connection->on_break[1], nullptr)(absl::CancelledError("cancelled"));
  });
  if (c.on_break[0]) std::exchange(c.on_break[0], nullptr)(absl::CancelledError("cancelled"));
}

void Router::OnRegistered(const std::shared_ptr<Stream>& stream, const pb::Registration& r) {
  thread_.Post([this, stream, r] {
    conductor_.workers().OnRegistered(static_cast<size_t>(stream->worker - 1), stream->id, r);
  });
}

// A failure of an attempt that nobody has given up costs work and trust, though no token.
void Router::CheckNeed(const pb::AttemptEvent& e) const {
  if (e.finish() != pb::FINISH_ERROR || !world_.undisturbed()) return;
  const absl::Status why = EventFromProto(e, SimModel::kVocab, 0).error;
  if (absl::IsResourceExhausted(why)) return;
  for (const RequestStatus& r : conductor_.List()) {
    if (!r.running || r.attempt != e.id().attempt() ||
        e.id().request() != absl::StrCat("r", node_->life, "-", r.id)) {
      continue;
    }
    world_.Fail(absl::StrCat("attempt ", r.attempt, " of request ", r.id,
                             " fails without need: ", why.ToString()));
  }
}

void Router::OnEvents(const std::shared_ptr<Stream>& stream, const pb::StepEvents& events) {
  thread_.Post([this, stream, events] {
    for (const pb::AttemptEvent& e : events.events()) CheckNeed(e);
    conductor_.workers().OnEvents(static_cast<size_t>(stream->worker - 1), stream->id, events);
  });
}

void Router::OnHeartbeat(const std::shared_ptr<Stream>& stream, const pb::Heartbeat& h) {
  thread_.Post([this, stream, h] {
    conductor_.workers().OnHeartbeat(static_cast<size_t>(stream->worker - 1), stream->id, h);
  });
}

}  // namespace switchyard::sim
