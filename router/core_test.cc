// The core with real streams to workers whose tokens are a hash of their history.
#include "router/core.h"

#include <gtest/gtest.h>

#include <map>
#include <optional>

#include "absl/strings/str_cat.h"
#include "router/test_worker.h"

namespace switchyard {
namespace {

using Finish = ClientUpdate::Finish;

struct Answer {
  std::vector<TokenId> tokens;
  std::string text;
  std::optional<ClientUpdate> last;
};

// Collects what the sink of one request gets.
class Client {
 public:
  RouterCore::Sink Sink() {
    return [this](ClientUpdate u) {
      MutexLock lock(mu_);
      EXPECT_FALSE(answer_.last.has_value()) << "an update after the last one";
      for (const SampledToken& t : u.tokens) answer_.tokens.push_back(t.token);
      answer_.text += u.text;
      if (u.finish != Finish::kNone) answer_.last = std::move(u);
      changed_.NotifyAll();
    };
  }
  Answer Wait(size_t tokens = SIZE_MAX) {
    const MonotonicClock clock;
    const absl::Time until = clock.Now() + absl::Seconds(30);
    MutexLock lock(mu_);
    while (!answer_.last && answer_.tokens.size() < tokens && clock.Now() < until) {
      changed_.WaitFor(mu_, absl::Milliseconds(50));
    }
    return answer_;
  }

 private:
  Mutex mu_;
  CondVar changed_;
  Answer answer_ ABSL_GUARDED_BY(mu_);
};

template <typename Condition>
bool Eventually(const Condition& condition) {
  for (int i = 0; i < 3000; ++i) {
    if (condition()) return true;
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  return false;
}

class CoreTest : public ::testing::Test {
 protected:
  TestWorker& Start(TestWorkerOptions options) {
    workers_.push_back(std::make_unique<TestWorker>(&peers_, options));
    (options.role == cluster::v1::ROLE_PREFILL ? options_.prefill_addresses
                                               : options_.decode_addresses)
        .push_back(workers_.back()->address());
    return *workers_.back();
  }
  TestWorker& StartPrefill() { return Start({.role = cluster::v1::ROLE_PREFILL}); }
  void StartCore() {
    options_.model = TestModel();
    if (options_.tokenizer) options_.model.vocab_size = options_.tokenizer->vocab_size();
    options_.attempts.backoff_max = absl::Milliseconds(100);
    auto core = Core::Create(options_, &clock_, &log_);
    ASSERT_TRUE(core.ok()) << core.status();
    core_ = *std::move(core);
    ASSERT_TRUE(Eventually([&] { return core_->status().ready && Alive() == workers_.size(); }));
  }
  size_t Alive() const {
    size_t n = 0;
    for (const WorkerStatus& w : core_->status().workers) n += w.alive;
    return n;
  }
  static ClientRequest Request(int prompt, int max_tokens) {
    std::vector<TokenId> ids;
    for (int i = 0; i < prompt; ++i) ids.push_back((i * 7 + prompt) % 1000);
    ClientRequest r;
    r.prompt_ids = std::move(ids);
    r.max_tokens = max_tokens;
    return r;
  }
  void Kill(size_t n) { workers_[n].reset(); }
  bool Metric(const std::string& line) {
    return core_->MetricsText().find(line) != std::string::npos;
  }
  bool AllFree() {
    return Eventually([&] {
      int held = 0;
      for (const auto& w : workers_) held += w ? w->held() : 0;
      const RouterStatus s = core_->status();
      return held == 0 && s.running == 0 && s.waiting == 0;
    });
  }

  MonotonicClock clock_;
  Logger log_{"test", LogLevel::kError, LogFormat::kText};
  TestWorker::Peers peers_;
  std::vector<std::unique_ptr<TestWorker>> workers_;
  CoreOptions options_;
  std::unique_ptr<Core> core_;
};

TEST_F(CoreTest, EveryRouteGivesTheSameTokens) {
  StartPrefill();
  Start({});
  StartCore();
  std::map<int, std::unique_ptr<Client>> clients;
  for (int prompt : {1, 5, 63, 64, 200, 3000}) {
    clients[prompt] = std::make_unique<Client>();
    ASSERT_TRUE(core_->Submit(Request(prompt, 20), clients[prompt]->Sink()).ok());
  }
  for (auto& [prompt, client] : clients) {
    const Answer a = client->Wait();
    ASSERT_TRUE(a.last.has_value());
    EXPECT_EQ(a.last->finish, Finish::kLength) << a.last->error;
    EXPECT_EQ(a.tokens, TestTokens(Request(prompt, 1).prompt_ids, 20));
    EXPECT_EQ(a.last->completion_tokens, 20);
    EXPECT_EQ(a.last->prompt_tokens, prompt);
    EXPECT_EQ(a.last->attempts, 1);
    EXPECT_EQ(a.last->kv_bytes_moved, prompt >= 64 ? 1234u : 0u);
    EXPECT_EQ(a.last->prefill_worker.empty(), prompt < 64);
    EXPECT_GT(a.last->ttft, absl::ZeroDuration());
    EXPECT_GE(a.last->e2e, a.last->ttft);
  }
  EXPECT_TRUE(AllFree());
  EXPECT_TRUE(Metric("switchyard_generation_tokens_total{model_name=\"m\"} 120"));
  EXPECT_TRUE(Metric("switchyard_kv_bytes_moved_total{model_name=\"m\"} 3702"));
}

TEST_F(CoreTest, WorkersAreFoundByTheNameOfTheirService) {
  const std::string address = Start({}).address();
  options_.decode_addresses = {"dns:localhost" + address.substr(address.rfind(':'))};
  StartCore();
  Client client;
  ASSERT_TRUE(core_->Submit(Request(20, 5), client.Sink()).ok());
  EXPECT_EQ(client.Wait().tokens, TestTokens(Request(20, 1).prompt_ids, 5));
}

TEST_F(CoreTest, OneTokenRequestEndsAtPrefill) {
  StartPrefill();
  Start({});
  StartCore();
  Client client;
  ASSERT_TRUE(core_->Submit(Request(100, 1), client.Sink()).ok());
  const Answer a = client.Wait();
  ASSERT_TRUE(a.last.has_value());
  EXPECT_EQ(a.tokens.size(), 1u);
  EXPECT_TRUE(AllFree());  // D was told
}

TEST_F(CoreTest, LostDecodeWorkerCostsAPauseAndNoToken) {
  StartPrefill();
  Start({.step = absl::Milliseconds(3)});
  Start({.step = absl::Milliseconds(3)});
  StartCore();
  std::vector<std::unique_ptr<Client>> clients;
  for (int i = 0; i < 20; ++i) {
    clients.push_back(std::make_unique<Client>());
    ASSERT_TRUE(core_->Submit(Request(50 + i * 2, 200), clients.back()->Sink()).ok());
  }
  clients[0]->Wait(30);
  Kill(1);
  int retried = 0;
  for (int i = 0; i < 20; ++i) {
    const Answer a = clients[i]->Wait();
    ASSERT_TRUE(a.last.has_value());
    EXPECT_EQ(a.last->finish, Finish::kLength) << a.last->error;
    EXPECT_EQ(a.tokens, TestTokens(Request(50 + i * 2, 1).prompt_ids, 200));
    retried += a.last->attempts > 1;
  }
  EXPECT_GT(retried, 0);
  EXPECT_TRUE(AllFree());
}

TEST_F(CoreTest, OnlyDecodeWorkerComesBackAndTheRequestGoesOn) {
  const int port = Start({.step = absl::Milliseconds(3)}).port();
  StartCore();
  Client client, late;
  ASSERT_TRUE(core_->Submit(Request(10, 100), client.Sink()).ok());
  client.Wait(10);
  Kill(0);
  ASSERT_TRUE(Eventually([&] { return !core_->status().ready; }));
  ASSERT_TRUE(core_->Submit(Request(10, 100), late.Sink()).ok());  // waits
  workers_[0] = std::make_unique<TestWorker>(&peers_, TestWorkerOptions{.port = port});
  for (Client* c : {&client, &late}) {
    const Answer a = c->Wait();
    ASSERT_TRUE(a.last.has_value());
    EXPECT_EQ(a.last->finish, Finish::kLength) << a.last->error;
    EXPECT_EQ(a.tokens, TestTokens(Request(10, 1).prompt_ids, 100));
  }
}

TEST_F(CoreTest, SilentWorkerIsReplacedAfterItsLease) {
  options_.lease = absl::Milliseconds(600);
  TestWorker& silent = Start({.step = absl::Milliseconds(3)});
  StartCore();
  Client client;
  ASSERT_TRUE(core_->Submit(Request(10, 4000), client.Sink()).ok());
  client.Wait(10);
  silent.Freeze();
  ASSERT_TRUE(Eventually([&] { return !core_->status().ready; }));
  EXPECT_EQ(core_->status().waiting, 1);  // the request is kept for a worker that comes
  core_.reset();
  EXPECT_EQ(client.Wait().last->error.code(), absl::StatusCode::kUnavailable);
}

TEST_F(CoreTest, RetryableErrorsUseUpTheBudgetAndThenSayWhy) {
  Start({.fail_after_tokens = 0, .failure = absl::DataLossError("checksum")});
  StartCore();
  Client client;
  ASSERT_TRUE(core_->Submit(Request(10, 100), client.Sink()).ok());
  const Answer a = client.Wait();
  ASSERT_TRUE(a.last.has_value());
  EXPECT_EQ(a.last->error.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(a.last->attempts, 5);
  EXPECT_TRUE(Metric("switchyard_request_retries_total{model_name=\"m\"} 4"));
}

TEST_F(CoreTest, AttemptsThatMakeProgressGoOn) {
  Start({.fail_after_tokens = 5, .failure = absl::DataLossError("checksum")});
  StartCore();
  Client client;
  ASSERT_TRUE(core_->Submit(Request(10, 40), client.Sink()).ok());
  const Answer a = client.Wait();
  ASSERT_TRUE(a.last.has_value());
  EXPECT_EQ(a.last->finish, Finish::kLength) << a.last->error;
  EXPECT_EQ(a.tokens, TestTokens(Request(10, 1).prompt_ids, 40));
}

TEST_F(CoreTest, AbortEndsTheRequestAndFreesTheWorkers) {
  StartPrefill();
  Start({});
  StartCore();
  Client client;
  absl::StatusOr<std::string> id = core_->Submit(Request(100, 4000 - 100), client.Sink());
  ASSERT_TRUE(id.ok());
  client.Wait(10);
  EXPECT_TRUE(core_->Abort(*id));
  const Answer a = client.Wait();
  ASSERT_TRUE(a.last.has_value());
  EXPECT_EQ(a.last->finish, Finish::kAbort);
  EXPECT_TRUE(AllFree());
  EXPECT_FALSE(core_->Abort(*id));
}

TEST_F(CoreTest, OverloadAndRepeatedIdsAreRefusedAtOnce) {
  Start({.step = absl::Milliseconds(5)});
  options_.limits.requests_max = 2;
  StartCore();
  Client a, b, c;
  ClientRequest named = Request(10, 1000);
  named.request_id = "mine";
  ASSERT_TRUE(core_->Submit(named, a.Sink()).ok());
  EXPECT_EQ(core_->Submit(named, b.Sink()).status().code(), absl::StatusCode::kAlreadyExists);
  ASSERT_TRUE(core_->Submit(Request(10, 1000), b.Sink()).ok());
  absl::Status full = core_->Submit(Request(10, 1000), c.Sink()).status();
  EXPECT_EQ(full.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(core_->Abort("mine"));
  a.Wait();
  EXPECT_TRUE(Eventually([&] { return core_->Submit(Request(10, 1), c.Sink()).ok(); }));
  core_->GiveUpAll();
  const Answer given_up = b.Wait();
  c.Wait();  // its sink is called until then
  EXPECT_EQ(given_up.last->finish, Finish::kError);
  EXPECT_EQ(given_up.last->error.code(), absl::StatusCode::kUnavailable);
}

TEST_F(CoreTest, FullWorkersMakeRequestsWaitAndAllAreServed) {
  Start({.kv_blocks_total = 8});  // 3 blocks each
  StartCore();
  std::vector<std::unique_ptr<Client>> clients;
  for (int i = 0; i < 12; ++i) {
    clients.push_back(std::make_unique<Client>());
    ASSERT_TRUE(core_->Submit(Request(40, 20), clients.back()->Sink()).ok());
  }
  for (auto& client : clients) {
    const Answer a = client->Wait();
    ASSERT_TRUE(a.last.has_value());
    EXPECT_EQ(a.tokens, TestTokens(Request(40, 1).prompt_ids, 20));
  }
}

TEST_F(CoreTest, DeadlineEndsARequest) {
  Start({.step = absl::Milliseconds(20)});
  StartCore();
  Client client;
  ClientRequest r = Request(10, 4000);
  r.deadline = absl::Milliseconds(200);
  ASSERT_TRUE(core_->Submit(r, client.Sink()).ok());
  const Answer a = client.Wait();
  ASSERT_TRUE(a.last.has_value());
  EXPECT_EQ(a.last->error.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_TRUE(AllFree());
}

TEST_F(CoreTest, ForeignNumericsAreNotUsed) {
  Start({});
  StartCore();
  EXPECT_EQ(core_->model().numerics_id, "n");
  core_.reset();
  Start({.numerics_id = "other"});
  auto core = Core::Create(options_, &clock_, &log_);
  ASSERT_TRUE(core.ok());
  core_ = *std::move(core);
  ASSERT_TRUE(Eventually([&] { return core_->status().ready; }));
  std::this_thread::sleep_for(std::chrono::milliseconds(300));
  EXPECT_EQ(Alive(), 1u);  // whichever came first
}

TEST_F(CoreTest, DrainTakesNothingNewAndLetsTheRestFinish) {
  Start({});
  StartCore();
  Client client, late;
  ASSERT_TRUE(core_->Submit(Request(10, 300), client.Sink()).ok());
  core_->StartDrain();
  EXPECT_EQ(core_->Submit(Request(10, 3), late.Sink()).status().code(),
            absl::StatusCode::kUnavailable);
  EXPECT_EQ(client.Wait().tokens.size(), 300u);
  EXPECT_EQ(core_->status().not_ready_because, "draining");
}

TEST_F(CoreTest, RefusalsAreCountedByReason) {
  options_.limits.requests_max = 1;
  Start({.step = absl::Milliseconds(3)});
  StartCore();
  Client running, drained;
  const absl::StatusOr<std::string> id = core_->Submit(Request(10, 4000), running.Sink());
  ASSERT_TRUE(id.ok());
  ASSERT_FALSE(core_->Submit(Request(10, 1), running.Sink()).ok());
  core_->StartDrain();
  ASSERT_FALSE(core_->Submit(Request(10, 1), drained.Sink()).ok());
  for (const char* reason : {"full\"} 1", "draining\"} 1", "late\"} 0", "not_ready\"} 0"}) {
    EXPECT_TRUE(Metric(
        absl::StrCat("switchyard_requests_refused_total{model_name=\"m\",reason=\"", reason)))
        << reason;
  }
  EXPECT_TRUE(core_->Abort(*id));
  ASSERT_TRUE(running.Wait().last.has_value());
}

TEST_F(CoreTest, NothingIsTakenBeforeAWorkerWasThere) {
  options_.decode_addresses = {"127.0.0.1:1"};
  options_.model = TestModel();
  auto core = Core::Create(options_, &clock_, &log_);
  ASSERT_TRUE(core.ok());
  Client client;
  EXPECT_EQ((*core)->Submit(Request(10, 3), client.Sink()).status().code(),
            absl::StatusCode::kUnavailable);
  options_.decode_addresses.push_back("127.0.0.1:1");
  EXPECT_FALSE(Core::Create(options_, &clock_, &log_).ok());
}

TEST_F(CoreTest, TokensOfAStreamIntervalGoTogether) {
  options_.stream_interval = 8;
  Start({});
  StartCore();
  Client client;
  std::vector<size_t> sizes;  // the core's, until the last update
  ASSERT_TRUE(core_
                  ->Submit(Request(10, 400),
                           [&, sink = client.Sink()](ClientUpdate update) {
                             sizes.push_back(update.tokens.size());
                             sink(std::move(update));
                           })
                  .ok());
  const Answer a = client.Wait();
  ASSERT_TRUE(a.last.has_value());
  EXPECT_EQ(a.tokens, TestTokens(Request(10, 1).prompt_ids, 400));
  ASSERT_GE(sizes.size(), 3u);
  EXPECT_EQ(sizes.front(), 1u) << "the first token waits for nothing";
  for (size_t i = 1; i + 1 < sizes.size(); ++i) EXPECT_GE(sizes[i], 8u) << i;
}

TEST_F(CoreTest, TokensThatComeWhileTheRouterIsBusyGoTogether) {
  Start({});
  StartCore();
  Client client;
  std::atomic<int> updates{0};
  const ClientRequest request = Request(10, 300);
  ASSERT_TRUE(core_
                  ->Submit(request,
                           [&, sink = client.Sink()](ClientUpdate update) {
                             if (updates++ == 1) absl::SleepFor(absl::Milliseconds(500));
                             sink(std::move(update));
                           })
                  .ok());
  const Answer a = client.Wait();
  ASSERT_TRUE(a.last.has_value());
  EXPECT_EQ(a.tokens, TestTokens(request.prompt_ids, 300, TestWorkerOptions().vocab_size));
  EXPECT_EQ(a.last->completion_tokens, 300);
  EXPECT_LT(updates, 290) << "some tens of them came in half a second";
}

TEST_F(CoreTest, TextIsTheDecodedTokensUpToTheStopString) {
  absl::StatusOr<std::unique_ptr<Tokenizer>> tokenizer =
      Tokenizer::Load("models/fables-7m/tokenizer.json");
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  const int vocab_size = (*tokenizer)->vocab_size();
  options_.tokenizer = tokenizer->get();
  Start({.vocab_size = vocab_size});
  StartCore();
  const std::vector<TokenId> tokens = TestTokens(Request(10, 1).prompt_ids, 40, vocab_size);
  const std::string whole = *(*tokenizer)->Decode(tokens, /*skip_special_tokens=*/true);
  for (int border = 0; border < 40; border += 3) {  // 0: no stop string
    const size_t at = (*tokenizer)->Decode({tokens.data(), size_t(border)}, true)->size();
    ClientRequest request = Request(10, 40);
    if (border > 0) request.stop = {whole.substr(at < 2 ? 0 : at - 2, 4), "never there"};
    const size_t end = border > 0 ? whole.find(request.stop[0]) : whole.size();
    Client client;
    ASSERT_TRUE(core_->Submit(request, client.Sink()).ok());
    const Answer a = client.Wait();
    ASSERT_TRUE(a.last.has_value());
    EXPECT_EQ(a.last->finish, border > 0 ? Finish::kStop : Finish::kLength);
    EXPECT_EQ(a.last->stop_match, border > 0 ? request.stop[0] : "");
    EXPECT_EQ(a.text, whole.substr(0, end)) << border;
    EXPECT_EQ(static_cast<size_t>(a.last->completion_tokens), a.tokens.size());
    EXPECT_TRUE(std::equal(a.tokens.begin(), a.tokens.end(), tokens.begin()));
  }
  EXPECT_TRUE(AllFree());
}

}  // namespace
}  // namespace switchyard
