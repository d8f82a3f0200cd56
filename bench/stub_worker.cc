#include "bench/stub_worker.h"

#include <algorithm>
#include <atomic>
#include <map>
#include <thread>
#include <vector>

#include "cluster/grpc_server.h"
#include "cluster/worker_server.h"
#include "common/clock.h"
#include "common/mutex.h"
#include "common/status_macros.h"

namespace switchyard {
namespace {

namespace pb = cluster::v1;
constexpr int kBlocks = 1 << 24;  // never the reason to wait

class StubWorkerImpl final : public StubWorker {
 public:
  explicit StubWorkerImpl(const StubWorkerOptions& options)
      : options_(options), service_(Callbacks()) {}
  ~StubWorkerImpl() override {
    stop_ = true;
    if (thread_.joinable()) thread_.join();
    if (server_ != nullptr) server_->Shutdown();
  }

  absl::Status Listen() {
    GrpcServerOptions listen;
    listen.port = options_.port;
    ASSIGN_OR_RETURN(server_, GrpcServer::Listen(listen, {&service_}));
    thread_ = std::thread([this] { Run(); });
    return absl::OkStatus();
  }
  int port() const override { return server_->port(); }

 private:
  struct Attempt {
    SessionId session;
    int next = 0, end = 0;  // indices of tokens
    absl::Time from;
  };

  WorkerCallbacks Callbacks() {
    WorkerCallbacks c;
    c.registration = [this] {
      pb::Registration r;
      r.set_role(pb::ROLE_DECODE);
      r.set_incarnation(1);
      r.set_numerics_id("stub");
      r.set_layout_id("stub");
      r.set_max_model_len(options_.max_model_len);
      r.set_vocab_size(options_.vocab_size);
      r.set_block_tokens(16);
      r.set_kv_blocks_total(kBlocks);
      return r;
    };
    c.heartbeat = [] {
      pb::Heartbeat h;
      h.set_kv_blocks_free(kBlocks);
      return h;
    };
    c.on_submit = [this](SessionId session, pb::Submit submit) {
      const int begin = submit.generated_ids_size();
      const absl::Time from = clock_.Now() + submit.prompt_ids_size() * options_.prompt_token;
      MutexLock lock(mu_);
      attempts_[FromProto(submit.id())] = {session, begin, submit.max_tokens(), from};
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

  void Run() {
    for (absl::Time next = clock_.Now(); !stop_; next += options_.step) {
      Step();
      const absl::Time now = clock_.Now();
      next = std::max(next, now - options_.step);  // a late step is not made up for
      std::this_thread::sleep_for(absl::ToChronoNanoseconds(next + options_.step - now));
    }
  }
  void Step() {
    const absl::Time now = clock_.Now();
    std::vector<WorkerServer::Addressed> events;
    MutexLock lock(mu_);
    for (auto it = attempts_.begin(); it != attempts_.end();) {
      Attempt& a = it->second;
      if (now < a.from) {
        ++it;
        continue;
      }
      pb::AttemptEvent event;
      ToProto(it->first, event.mutable_id());
      event.set_index(a.next);
      // Not the first ones, which no text belongs to.
      event.mutable_token()->set_token((options_.vocab_size / 4 + a.next) % options_.vocab_size);
      const bool last = ++a.next >= a.end;
      if (last) event.set_finish(pb::FINISH_LENGTH);
      events.emplace_back(a.session, std::move(event));
      it = last ? attempts_.erase(it) : std::next(it);
    }
    service_.SendAll(std::move(events));
  }

  const StubWorkerOptions options_;
  const MonotonicClock clock_;
  Mutex mu_;
  std::map<AttemptKey, Attempt> attempts_ ABSL_GUARDED_BY(mu_);
  std::atomic<bool> stop_{false};
  WorkerServer service_;
  std::unique_ptr<GrpcServer> server_;
  std::thread thread_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<StubWorker>> StubWorker::Create(const StubWorkerOptions& options) {
  auto stub = std::make_unique<StubWorkerImpl>(options);
  RETURN_IF_ERROR(stub->Listen());
  return stub;
}

}  // namespace switchyard
