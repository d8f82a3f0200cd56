#include "router/test_worker.h"

#include <utility>

#include "common/check.h"

namespace switchyard {

namespace pb = cluster::v1;

TokenId TestToken(const std::vector<TokenId>& history, int vocab_size) {
  uint64_t h = 1469598103934665603u;
  for (TokenId t : history) h = (h ^ static_cast<uint64_t>(t)) * 1099511628211u;
  return static_cast<TokenId>((h >> 33) % static_cast<uint64_t>(vocab_size));
}

std::vector<TokenId> TestTokens(std::vector<TokenId> prompt, int n, int vocab_size) {
  std::vector<TokenId> out;
  for (int i = 0; i < n; ++i) {
    out.push_back(TestToken(prompt, vocab_size));
    prompt.push_back(out.back());
  }
  return out;
}

TestWorker::TestWorker(Peers* peers, TestWorkerOptions options)
    : options_(std::move(options)), peers_(peers) {
  service_ = std::make_unique<WorkerServer>(Callbacks());
  absl::StatusOr<std::unique_ptr<GrpcServer>> server =
      GrpcServer::Listen({.port = options_.port}, {service_.get()});
  SY_CHECK_MSG(server.ok(), server.status().message());
  server_ = *std::move(server);
  address_ = HostPort("127.0.0.1", server_->port());
  {
    MutexLock lock(peers_->mu);
    peers_->by_address[address_] = this;
  }
  thread_ = std::thread([this] { Run(); });
}

TestWorker::~TestWorker() {
  {
    MutexLock lock(peers_->mu);
    peers_->by_address.erase(address_);
  }
  stop_ = true;
  thread_.join();
  server_.reset();
}

int TestWorker::held() const {
  MutexLock lock(mu_);
  return static_cast<int>(attempts_.size());
}

WorkerCallbacks TestWorker::Callbacks() {
  WorkerCallbacks c;
  c.registration = [this] {
    pb::Registration r;
    r.set_role(options_.role);
    r.set_incarnation(reinterpret_cast<uintptr_t>(this));
    r.set_numerics_id(options_.numerics_id);
    r.set_layout_id("l");
    r.set_max_model_len(options_.max_model_len);
    r.set_block_tokens(16);
    r.set_kv_blocks_total(options_.kv_blocks_total);
    r.set_vocab_size(options_.vocab_size);
    if (server_) r.set_handoff_address(HostPort("127.0.0.1", server_->port()));
    return r;
  };
  c.heartbeat = [this] {
    while (frozen_ && !stop_) std::this_thread::sleep_for(std::chrono::milliseconds(10));
    return pb::Heartbeat();
  };
  c.on_submit = [this](SessionId session, pb::Submit submit) {
    const AttemptKey key = FromProto(submit.id());
    Attempt a{.session = session, .submit = std::move(submit), .history = {}};
    a.history.assign(a.submit.prompt_ids().begin(), a.submit.prompt_ids().end());
    a.history.insert(a.history.end(), a.submit.generated_ids().begin(),
                     a.submit.generated_ids().end());
    a.index = a.submit.generated_ids_size();
    a.waits = a.submit.remote_prefill();
    MutexLock lock(mu_);
    if (auto it = delivered_.find(key); it != delivered_.end()) {
      a.history.push_back(it->second);
      ++a.index;
      a.waits = false;
      delivered_.erase(it);
    }
    attempts_[key] = std::move(a);
  };
  c.on_abort = [this](SessionId, const AttemptKey& key) {
    MutexLock lock(mu_);
    attempts_.erase(key);
  };
  c.on_session_end = [this](SessionId, std::vector<AttemptKey> open) {
    MutexLock lock(mu_);
    for (const AttemptKey& key : open) attempts_.erase(key);
  };
  return c;
}

void TestWorker::Deliver(const AttemptKey& key, TokenId first) {
  MutexLock lock(mu_);
  auto it = attempts_.find(key);
  if (it == attempts_.end()) {
    delivered_[key] = first;
    return;
  }
  it->second.history.push_back(first);
  ++it->second.index;
  it->second.waits = false;
}

bool TestWorker::EmitToken(Attempt& a) {
  pb::AttemptEvent e;
  *e.mutable_id() = a.submit.id();
  if (options_.fail_after_tokens >= 0 &&
      a.index - a.submit.generated_ids_size() >= options_.fail_after_tokens) {
    service_->SendAll({{a.session, ErrorEvent(FromProto(a.submit.id()), options_.failure)}});
    return true;
  }
  const TokenId token = TestToken(a.history, options_.vocab_size);
  a.history.push_back(token);
  e.set_index(a.index++);
  e.mutable_token()->set_token(token);
  const bool last = a.index >= a.submit.max_tokens();
  if (last) e.set_finish(pb::FINISH_LENGTH);
  service_->SendAll({{a.session, std::move(e)}});
  ++tokens_sent_;
  return last;
}

void TestWorker::Step() {
  for (auto it = attempts_.begin(); it != attempts_.end();) {
    Attempt& a = it->second;
    if (a.waits) {
      ++it;
      continue;
    }
    bool done = EmitToken(a);
    if (options_.role == pb::ROLE_PREFILL && !done) {
      handoffs_.push_back([this, key = it->first, session = a.session,
                           address = a.submit.decode_address(), first = a.history.back()] {
        {
          MutexLock lock(peers_->mu);
          auto peer = peers_->by_address.find(address);
          if (peer == peers_->by_address.end()) {
            service_->SendAll(
                {{session, ErrorEvent(key, absl::UnavailableError("no decode worker"))}});
            return;
          }
          peer->second->Deliver(key, first);
        }
        pb::AttemptEvent e;
        ToProto(key, e.mutable_id());
        e.set_handed_off(true);
        e.set_kv_bytes_moved(1234);
        e.set_kv_lane("shm");
        service_->SendAll({{session, std::move(e)}});
      });
      done = true;
    }
    it = done ? attempts_.erase(it) : std::next(it);
  }
}

void TestWorker::Run() {
  while (!stop_) {
    std::this_thread::sleep_for(absl::ToChronoNanoseconds(options_.step));
    if (frozen_) continue;
    std::vector<std::function<void()>> handoffs;
    {
      MutexLock lock(mu_);
      Step();
      handoffs.swap(handoffs_);
    }
    for (const auto& handoff : handoffs) handoff();
  }
}

}  // namespace switchyard
