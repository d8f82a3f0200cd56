// router/test_worker.h: a worker for tests of the router: it speaks the real protocol over a real
// connection, and its tokens are H(prompt and generated ids), so that a lost, doubled or foreign
// token changes all that follow.
#pragma once

#include <atomic>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "absl/time/time.h"
#include "cluster/grpc_server.h"
#include "cluster/worker_server.h"
#include "common/ids.h"
#include "common/mutex.h"
#include "router/router.h"

namespace switchyard {

struct TestWorkerOptions {
  cluster::v1::Role role = cluster::v1::ROLE_DECODE;
  int port = 0;
  std::string numerics_id = "n";
  int vocab_size = 1000, max_model_len = 4096, kv_blocks_total = 10000;
  absl::Duration step = absl::Milliseconds(1);  // one token of every attempt
  int fail_after_tokens = -1;                   // then every attempt fails with `failure`
  absl::Status failure = absl::OkStatus();
};

// The model that the workers claim to have.
inline ModelDescription TestModel() {
  ModelDescription model;
  model.id = "m";
  model.architecture = "A";
  model.vocab_size = 1000;
  model.max_model_len = 4096;
  return model;
}

// The token that follows `history`.
TokenId TestToken(const std::vector<TokenId>& history, int vocab_size);
// The `n` tokens that follow `prompt`.
std::vector<TokenId> TestTokens(std::vector<TokenId> prompt, int n, int vocab_size = 1000);

class TestWorker {
 public:
  // Prefill workers find decode workers by the addresses in `peers`, which must outlive both.
  struct Peers {
    Mutex mu;
    std::map<std::string, TestWorker*> by_address ABSL_GUARDED_BY(mu);
  };
  TestWorker(Peers* peers, TestWorkerOptions options);
  ~TestWorker();  // as abrupt as a crash: streams break

  const std::string& address() const { return address_; }
  int port() const { return server_->port(); }
  int held() const;  // attempts whose KV the worker holds
  int64_t tokens_sent() const { return tokens_sent_; }
  // Stands still without a heartbeat, as a stopped process does.
  void Freeze() { frozen_ = true; }

 private:
  struct Attempt {
    SessionId session;
    cluster::v1::Submit submit;
    std::vector<TokenId> history;
    int index = 0;
    bool waits = false;  // for the hand-off
  };
  WorkerCallbacks Callbacks();
  void Run();
  void Step() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  bool EmitToken(Attempt& a) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);  // true: it was the last
  void Deliver(const AttemptKey& key, TokenId first);

  const TestWorkerOptions options_;
  Peers* const peers_;
  std::string address_;
  mutable Mutex mu_;
  std::map<AttemptKey, Attempt> attempts_ ABSL_GUARDED_BY(mu_);
  std::map<AttemptKey, TokenId> delivered_ ABSL_GUARDED_BY(mu_);  // before their Submit
  std::vector<std::function<void()>> handoffs_ ABSL_GUARDED_BY(mu_);
  std::atomic<int64_t> tokens_sent_{0};
  std::atomic<bool> stop_{false}, frozen_{false};
  std::unique_ptr<WorkerServer> service_;
  std::unique_ptr<GrpcServer> server_;
  std::thread thread_;
};

}  // namespace switchyard
