#include "tests/sim/sim_worker.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/wire_conversion.h"
#include "kvtransfer/wire.h"
#include "tests/sim/sim_channel.h"
#include "tests/sim/sim_router.h"

namespace switchyard::sim {
namespace {

namespace pb = cluster::v1;

constexpr int kBlockTokens = 4;
constexpr absl::Duration kBeat = absl::Milliseconds(250), kTick = absl::Milliseconds(100);

}  // namespace

Worker::Worker(World* world, Node* node)
    : world_(*world),
      node_(node),
      life_(node->life),
      is_prefill_(world->is_prefill(node->id)),
      control_(&world->loop, node),
      engine_thread_(&world->loop, node, [this] { StepEngine(); }),
      kv_thread_(&world->loop, node,
                 [this] {
                   if (sender_) sender_->Turn();
                   if (receiver_) receiver_->Turn();
                 }),
      grpc_(&world->loop, node) {
  auto engine = Engine::Create(&world->shared.model, {.max_num_batched_tokens = 32,
                                                      .prefill_chunk = 12,
                                                      .block_size = kBlockTokens,
                                                      .kv_blocks = world->kv_blocks,
                                                      .max_num_seqs = 6,
                                                      .max_waiting = 8});
  SY_CHECK_MSG(engine.ok(), engine.status().ToString());
  engine_ = *std::move(engine);
  const KvHome home{world, node, life_, &kv_thread_};
  if (is_prefill_) {
    sender_ = std::make_unique<Sender>(home, &engine_->kv());
    prefill_ = std::make_unique<PrefillAttempts>(
        this, sender_.get(), sender_->MakeHello(),
        [this](const std::string& address) { return Dial(address); });
    engine_->SetKvProgress([this](const KvProgress& p) { prefill_->OnProgress(p); });
  } else {
    decode_ = std::make_unique<DecodeAttempts>(this);
    receiver_ = std::make_unique<Receiver>(home, &engine_->kv(), decode_->MakeOnDropped());
    decode_->set_receiver(receiver_.get());
  }
  Tick();
}

Worker::~Worker() = default;

std::unique_ptr<HandoffChannel> Worker::Dial(const std::string& address) {
  return std::make_unique<Channel>(&world_, this, node_->id, world_.NodeAt(address));
}

void Worker::Tick() {
  world_.loop.After(kTick, [this, alive = std::weak_ptr<int>(alive_)] {
    if (alive.expired()) return;
    control_.Post([this] {
      if (prefill_ && prefill_->size() > 0) prefill_->OnTick();
      if (decode_ && decode_->live() > 0) decode_->OnTick(clock().Now());
    });
    Tick();
  });
}

// ---- the router's stream

void Worker::OpenStream(const std::shared_ptr<Stream>& stream) {
  const SessionId id(next_session_++);
  sessions_[id].stream = stream;
  stream->deliver = [this, id, alive = std::weak_ptr<int>(alive_)](const pb::ToWorker& message) {
    if (alive.expired()) return;
    grpc_.Post([this, id, message] { OnMessage(id, message); });
  };
  stream->connection->on_break[1] = [this, id,
                                     alive = std::weak_ptr<int>(alive_)](const absl::Status&) {
    if (alive.expired()) return;
    grpc_.Post([this, id] { EndSession(id); });
  };
  pb::Registration r;
  r.set_wire_version(kClusterWireVersion);
  r.set_role(is_prefill_ ? pb::ROLE_PREFILL : pb::ROLE_DECODE);
  r.set_incarnation(uint64_t(node_->id) << 32 | life_);
  r.set_numerics_id(world_.shared.model.numerics_id());
  r.set_layout_id(engine_->kv().layout().LayoutId());
  r.set_max_model_len(engine_->options().max_model_len);
  r.set_block_tokens(kBlockTokens);
  r.set_kv_blocks_total(world_.kv_blocks);
  r.set_vocab_size(SimModel::kVocab);
  if (!is_prefill_) r.set_handoff_address(World::AddressOf(node_->id));
  World* world = &world_;
  stream->up.Send([world, stream, r] { world->router->OnRegistered(stream, r); });
  Beat(id);
}

void Worker::Beat(SessionId id) {
  world_.loop.After(kBeat, [this, id, alive = std::weak_ptr<int>(alive_)] {
    if (alive.expired() || !sessions_.contains(id)) return;
    grpc_.Post([this, id] {
      if (auto it = sessions_.find(id); it != sessions_.end()) SendHeartbeat(it->second);
    });
    Beat(id);
  });
}

void Worker::SendHeartbeat(const Session& session) {
  pb::Heartbeat h;
  h.set_steps(steps_);
  h.set_progress(engine_->progress());
  // A long step uses the processor all the time, a stuck one not at all.
  if (world_.loop.Now() >= node_->stuck_until) {
    h.set_engine_cpu_ms(absl::ToUnixMillis(world_.loop.Now()));
  }
  h.set_busy(busy_);
  h.set_draining(draining_);
  ToProto(engine_->stats(), &h);
  const std::shared_ptr<Stream>& stream = session.stream;
  stream->up.Send([world = &world_, stream, h] { world->router->OnHeartbeat(stream, h); });
}

void Worker::OnMessage(SessionId id, const pb::ToWorker& message) {
  auto it = sessions_.find(id);
  if (it == sessions_.end()) return;
  Session& session = it->second;
  if (message.has_submit()) {
    if (session.open.Open(FromProto(message.submit().id())) != OpenAttempts::Opened::kNew) return;
    control_.Post([this, id, submit = message.submit()] {
      if (draining_) {
        return Send(id, ErrorEvent(FromProto(submit.id()),
                                   absl::UnavailableError("the worker is draining")));
      }
      prefill_ ? prefill_->OnSubmit(id, submit) : decode_->OnSubmit(id, submit);
    });
  } else if (message.has_abort()) {
    const AttemptKey key = FromProto(message.abort().id());
    session.open.Forget(key);
    control_.Post([this, key] { prefill_ ? prefill_->OnAbort(key) : decode_->OnAbort(key); });
  }
}

void Worker::EndSession(SessionId id) {
  auto it = sessions_.find(id);
  if (it == sessions_.end()) return;
  it->second.stream->up.Break();
  control_.Post([this, keys = it->second.open.open()] {
    for (const AttemptKey& key : keys) {
      prefill_ ? prefill_->OnAbort(key) : decode_->OnAbort(key);
    }
  });
  sessions_.erase(it);
}

void Worker::Send(SessionId id, pb::AttemptEvent event) {
  auto it = sessions_.find(id);
  if (it == sessions_.end()) return;
  it->second.open.OnEvent(event);
  pb::StepEvents events;
  *events.add_events() = std::move(event);
  const std::shared_ptr<Stream>& stream = it->second.stream;
  stream->up.Send([world = &world_, stream, events] { world->router->OnEvents(stream, events); });
}

void Worker::Drain() {
  draining_ = true;
  for (const auto& [id, session] : sessions_) SendHeartbeat(session);
}

// ---- the engine

void Worker::StepEngine() {
  CheckBlocks();
  Loop& loop = world_.loop;
  if (loop.Now() < node_->stuck_until) {
    busy_ = engine_->HasWork();
    return engine_thread_.Hold(node_->stuck_until, [] {});
  }
  busy_ = engine_->HasWork();
  if (!busy_) return;
  auto outputs = engine_->Step();
  if (!outputs.ok()) return world_.Fail(absl::StrCat("step: ", outputs.status().ToString()));
  CheckBlocks();
  absl::Duration time = loop.random().Between(absl::Milliseconds(1), absl::Milliseconds(8));
  if (loop.Now() < node_->slow_until) {
    time *= 50;
  } else if (world_.long_steps && loop.random().Chance(0.1)) {
    time = loop.random().Between(absl::Seconds(1), absl::Seconds(3));
  }
  engine_thread_.Hold(loop.Now() + time, [this, outputs = *std::move(outputs)] {
    ++steps_;
    control_.Post([this, outputs] {
      for (const EngineOutput& o : outputs) {
        prefill_ ? prefill_->OnOutput(o) : decode_->OnOutput(o);
      }
    });
  });
}

// Whoever may write a block from outside, or reads it for the wire, has it for himself.
void Worker::CheckBlocks() {
  const BlockPool& pool = engine_->pool();
  pool.CheckInvariants();
  if (receiver_) {
    for (const auto& [key, blocks] : receiver_->held()) {
      for (const HeldBlock& held : blocks) {
        const bool shared = held.generation == 0;  // the prefix that this rank had
        if (shared ? pool.reference_count(held.block) > 0
                   : pool.leased(held.block) && pool.generation(held.block) == held.generation) {
          continue;
        }
        world_.Fail(absl::StrCat(node_->name, ": block ", held.block.value(),
                                 " of a hand-off under way has another owner"));
      }
    }
  }
  if (sender_) {
    for (const auto& [key, blocks] : sender_->pushed()) {
      for (const BlockId block : blocks) {
        if (pool.reference_count(block) > 0) continue;
        world_.Fail(absl::StrCat(node_->name, ": block ", block.value(),
                                 " is free while its transfer may read it"));
      }
    }
  }
}

void Worker::OnKvMessage(unsigned am, const std::vector<std::byte>& header,
                         const std::vector<std::byte>& payload) {
  kv_thread_.Post([=, this] {
    if (sender_ && am == kCreditAm) sender_->OnMessage(header);
    if (receiver_ && am == kFrameAm) receiver_->OnMessage(header, payload);
  });
}

std::string Worker::NotAtRest() const {
  const EngineStats s = engine_->stats();
  const BlockPool::Counts& b = s.blocks;
  if (b.available() != b.total) {
    return absl::StrCat(node_->name, ": of ", b.total, " blocks ", b.free, " are free, ", b.owned,
                        " owned, ", b.leased, " leased, ", b.quarantined, " quarantined");
  }
  if (s.running + s.waiting + s.held > 0) return absl::StrCat(node_->name, ": the engine has work");
  if (prefill_ && prefill_->size() > 0) {
    return absl::StrCat(node_->name, ": ", prefill_->size(), " attempts");
  }
  if (decode_ && decode_->live() > 0) {
    return absl::StrCat(node_->name, ": ", decode_->live(), " attempts");
  }
  if (decode_ && decode_->prompts() > 0) {
    return absl::StrCat(node_->name, ": ", decode_->prompts(), " prompts");
  }
  if (receiver_ && receiver_->stats().sessions > 0) {
    return absl::StrCat(node_->name, ": ", receiver_->stats().sessions, " hand-offs");
  }
  if (active_ != 0) return absl::StrCat(node_->name, ": a drain would wait for ", active_);
  return "";
}

}  // namespace switchyard::sim
