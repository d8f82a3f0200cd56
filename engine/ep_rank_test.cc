// Ranks as threads of this process, each with its model, its engine and its gRPC server: what they
// generate together is what one engine generates alone, to the last bit.
#include "engine/ep_rank.h"

#include <gtest/gtest.h>

#include <fstream>
#include <future>
#include <map>
#include <random>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "cluster/grpc_server.h"
#include "engine/engine_thread.h"
#include "engine/test_model.h"

namespace switchyard {
namespace {

constexpr char kModel[] = "models/fables-7m";

// Key/value heads that four ranks share in pairs; every rank has some, two have one of their own.
constexpr char kGqaModel[] = "tests/data/goldens/qwen3_moe";

std::vector<EngineRequest> Requests(int count, int vocabulary = 4000) {
  std::mt19937 rng(11);
  std::vector<EngineRequest> out(count);
  for (int i = 0; i < count; ++i) {
    EngineRequest& r = out[i];
    r.key = {absl::StrCat("r", i), 1};
    for (unsigned n = 1 + rng() % 60; n > 0; --n)
      r.prompt_ids.push_back(4 + rng() % (vocabulary - 4));
    r.max_tokens = 1 + static_cast<int>(rng() % 12);
    r.ignore_eos = true;
    r.sampling.temperature = i % 2 == 0 ? 0.0f : 1.0f;
    r.sampling.seed = i;
    r.sampling.logprobs = 2;
  }
  return out;
}

// {request: tokens and the bits of their log-probabilities}
using Answers = std::map<std::string, std::vector<std::pair<TokenId, float>>>;

void Take(const std::vector<EngineOutput>& outputs, Answers* answers, int* finished) {
  for (const EngineOutput& o : outputs) {
    if (o.token) (*answers)[o.key.request].emplace_back(o.token->token, o.token->logprob);
    *finished += o.finish != FinishReason::kNone;
    EXPECT_NE(o.finish, FinishReason::kError) << o.error;
  }
}

// Takes away those that ended because a rank was lost; how many they were.
int TakeErrors(std::vector<EngineOutput>* outputs, int* finished) {
  const auto lost = std::erase_if(*outputs, [](const EngineOutput& o) {
    return o.finish == FinishReason::kError && absl::IsUnavailable(o.error);
  });
  *finished += static_cast<int>(lost);
  return static_cast<int>(lost);
}

Answers Alone(const std::vector<EngineRequest>& requests, Model& model = TestModel()) {
  auto engine = Engine::Create(&model, {.max_model_len = 128}).value();
  Answers answers;
  int finished = 0;
  for (const EngineRequest& r : requests) EXPECT_TRUE(engine->Add(r).ok());
  while (engine->HasWork()) Take(engine->Step().value(), &answers, &finished);
  return answers;
}

int PortOf(const std::string& address) { return std::stoi(address.substr(address.rfind(':') + 1)); }

// A rank without an engine: it forms, or says why not.
struct BareRank {
  explicit BareRank(const EpOptions& ep, const std::string& dir = kModel) {
    auto placement =
        std::make_shared<const Placement>(MakePlacement(*LoadModelConfig(dir), ep).value());
    ModelOptions options;
    options.max_batch_tokens = 64;
    options.placement = placement;
    options.rank = RankId(ep.rank);
    options.tensor_rank = ep.tensor_rank();
    options.tensor_ranks = ep.tensor_ranks;
    model = Model::Load(dir, options).value();
    rank = EpRank::Create(ep, model.get(), placement, &clock, nullptr).value();
    GrpcServerOptions listen;
    listen.port = PortOf(ep.peers[ep.rank]);
    server = GrpcServer::Listen(listen, {rank->service()}).value();
  }
  ~BareRank() { rank->Stop(); }
  MonotonicClock clock;
  std::unique_ptr<Model> model;
  std::unique_ptr<EpRank> rank;
  std::unique_ptr<GrpcServer> server;
};

struct Worker : BareRank {
  Worker(const EpOptions& ep, const std::string& dir = kModel) : BareRank(ep, dir) {
    auto engine = Engine::Create(model.get(), {.max_model_len = 256, .max_num_batched_tokens = 64},
                                 rank.get())
                      .value();
    thread = std::make_unique<EngineThread>(
        std::move(engine),
        [this](std::vector<EngineOutput> outputs) {
          if (expect_errors) errors += TakeErrors(&outputs, &finished);
          Take(outputs, &answers, &finished);
          if (finished == wanted) done.set_value();
        },
        [this](absl::Status why) {
          if (!rank->left()) ADD_FAILURE() << why;
        },
        rank.get());
  }
  ~Worker() { rank->Stop(); }
  Answers answers;  // these three: the engine thread's, until `done`
  int finished = 0;
  int wanted = -1;
  bool expect_errors = false;
  int errors = 0;
  std::promise<void> done;
  std::unique_ptr<EngineThread> thread;
};

std::vector<std::string> Addresses(int world) {
  std::vector<std::string> addresses(world);
  for (std::string& address : addresses) {
    Rendezvous none({.rank = 0, .addresses = {""}});
    address = HostPort("127.0.0.1", (*GrpcServer::Listen({}, {&none}))->port());
  }
  return addresses;
}

struct Layout {
  int world, redundant = 0;
  std::string lane = "shm", placement_file = "";
  int low_latency_tokens = 128;
  absl::Duration rebalance_interval = absl::ZeroDuration();
  EpOverlap overlap = EpOverlap::kOff;
  int tensor_ranks = 1;
  const char* model = kModel;
};

// Every row of every request has chosen its experts in each MoE layer, on the rank that had it.
void ExpectLoads(const std::vector<std::unique_ptr<Worker>>& workers,
                 const std::vector<EngineRequest>& requests) {
  const ModelConfig& config = workers[0]->model->config();
  const auto moe_layers =
      static_cast<size_t>(std::count(config.layer_is_moe.begin(), config.layer_is_moe.end(), true));
  int64_t rows = 0;
  for (const EngineRequest& r : requests) {
    rows += static_cast<int64_t>(r.prompt_ids.size()) + r.max_tokens - 1;
  }
  std::vector<int64_t> chosen(moe_layers);
  std::vector<double> placed(moe_layers);
  for (const auto& w : workers) {
    const EpSnapshot s = w->rank->Snapshot();
    EXPECT_EQ(s.ranks, static_cast<int>(workers.size()));
    ASSERT_EQ(s.moe_layers.size(), moe_layers);
    for (size_t l = 0; l < moe_layers; ++l) {
      for (const int64_t n : s.expert_loads[l]) chosen[l] += n;
      for (const double n : s.rank_loads[l]) placed[l] += n;
    }
  }
  for (size_t l = 0; l < moe_layers; ++l) {
    EXPECT_EQ(chosen[l], rows * config.gate.top_k) << "MoE layer " << l;
    EXPECT_NEAR(placed[l], static_cast<double>(chosen[l]), 1e-6 * placed[l]);
  }
}

// Requests go in turn to the ranks that take any, unless all are for rank 0.
void ExpectBitsOf(const Layout& layout, const std::vector<EngineRequest>& requests,
                  const Answers& wanted, bool all_to_one) {
  const std::vector<std::string> peers = Addresses(layout.world);
  std::vector<std::unique_ptr<Worker>> workers;
  for (int r = 0; r < layout.world; ++r) {
    EpOptions ep;
    ep.rank = r;
    ep.peers = peers;
    ep.lanes = {layout.lane};
    ep.redundant_experts = layout.redundant;
    ep.placement_file = layout.placement_file;
    ep.low_latency_tokens = layout.low_latency_tokens;
    ep.rebalance_interval = layout.rebalance_interval;
    ep.rebalance = {.threshold = 0};
    ep.overlap = layout.overlap;
    ep.tensor_ranks = layout.tensor_ranks;
    ep.alive_after = absl::Seconds(10);  // all live, but may be slow to say so
    workers.push_back(std::make_unique<Worker>(ep, layout.model));
  }
  for (int r = 0; r < layout.world; ++r) {
    std::vector<EngineRequest> mine;
    for (size_t i = 0; i < requests.size(); ++i) {
      const int groups = layout.world / layout.tensor_ranks;
      const int to = all_to_one ? 0 : static_cast<int>(i) % groups * layout.tensor_ranks;
      if (to == r) mine.push_back(requests[i]);
    }
    ASSERT_TRUE(workers[r]->thread->Post([w = workers[r].get(), mine](Engine& engine) {
      w->wanted = static_cast<int>(mine.size());
      for (const EngineRequest& request : mine) EXPECT_TRUE(engine.Add(request).ok());
      if (mine.empty()) w->done.set_value();
    }));
  }
  Answers got;
  for (auto& w : workers) {
    ASSERT_EQ(w->done.get_future().wait_for(std::chrono::seconds(120)), std::future_status::ready);
  }
  // All leave together: nobody is an error to anybody.
  for (auto& w : workers) {
    ASSERT_TRUE(w->thread->Post([rank = w->rank.get()](Engine&) { rank->Leave(); }));
  }
  for (auto& w : workers) {
    for (int i = 0; i < 1000 && !w->rank->left(); ++i) absl::SleepFor(absl::Milliseconds(10));
    EXPECT_TRUE(w->rank->left());
    w->thread.reset();
    got.insert(w->answers.begin(), w->answers.end());
  }
  EXPECT_EQ(got, wanted);
  for (auto& w : workers) {
    const EpSnapshot s = w->rank->Snapshot();
    EXPECT_EQ(s.overlapped_steps > 0, layout.overlap == EpOverlap::kOn);
    EXPECT_EQ(s.waited.total() > absl::ZeroDuration(), layout.world > 1);
  }
  if (layout.rebalance_interval == absl::ZeroDuration()) return ExpectLoads(workers, requests);
  const EpRebalanceStats first = workers[0]->rank->Snapshot().rebalance;
  EXPECT_GE(first.done, 1u);
  EXPECT_EQ(first.aborted, 0u);
  EXPECT_EQ(first.placement, first.done + 1);
  uint64_t fetched = 0;
  for (const auto& w : workers) {
    const EpRebalanceStats s = w->rank->Snapshot().rebalance;
    EXPECT_EQ(s.placement, first.placement);  // all at the same step
    fetched += s.fetched_bytes;
  }
  EXPECT_GT(fetched, 0u);
}

TEST(EpRankTest, BitsAreThoseOfOneEngine) {
  const std::vector<EngineRequest> requests = Requests(12);
  const Answers wanted = Alone(requests);
  ASSERT_EQ(wanted.size(), requests.size());
  ExpectBitsOf({.world = 1}, requests, wanted, false);
  ExpectBitsOf({.world = 2}, requests, wanted, false);
  const auto on = EpOverlap::kOn;
  ExpectBitsOf({.world = 2, .overlap = on}, requests, wanted, false);
  ExpectBitsOf({.world = 2, .redundant = 2, .lane = "tcp"}, requests, wanted, false);
  ExpectBitsOf({.world = 2, .redundant = 4, .lane = "tcp", .low_latency_tokens = 0, .overlap = on},
               requests, wanted, true);
  ExpectBitsOf({.world = 2, .redundant = 4, .low_latency_tokens = 0}, requests, wanted, true);
  ExpectBitsOf({.world = 4, .lane = "tcp", .low_latency_tokens = 8}, requests, wanted, false);
  ExpectBitsOf({.world = 4, .redundant = 4, .overlap = on}, requests, wanted, true);
}

TEST(EpRankTest, TensorParallelismChangesNoBit) {
  const auto on = EpOverlap::kOn;
  const std::vector<EngineRequest> requests = Requests(8);
  const Answers wanted = Alone(requests);
  ExpectBitsOf({.world = 2, .tensor_ranks = 2}, requests, wanted, false);
  ExpectBitsOf({.world = 4, .redundant = 4, .lane = "tcp", .overlap = on, .tensor_ranks = 2},
               requests, wanted, false);
  ExpectBitsOf({.world = 4, .low_latency_tokens = 0, .overlap = on, .tensor_ranks = 4}, requests,
               wanted, true);

  const auto gqa = Model::Load(kGqaModel, {}).value();
  const std::vector<EngineRequest> others = Requests(8, gqa->config().vocab_size);
  const Answers theirs = Alone(others, *gqa);
  ExpectBitsOf({.world = 2, .overlap = on, .tensor_ranks = 2, .model = kGqaModel}, others, theirs,
               false);
  ExpectBitsOf({.world = 4, .lane = "tcp", .tensor_ranks = 4, .model = kGqaModel}, others, theirs,
               false);
}

TEST(EpRankTest, WhoLosesARankOfItsTensorGroupGivesItsRequestsBack) {
  const std::vector<EngineRequest> requests = Requests(4);
  const Answers wanted = Alone(requests);
  std::vector<EpOptions> options(2);
  const std::vector<std::string> peers = Addresses(2);
  std::vector<std::unique_ptr<Worker>> workers(2);
  for (int r = 0; r < 2; ++r) {
    options[r].rank = r;
    options[r].peers = peers;
    options[r].wait_max = absl::Seconds(5);
    options[r].tensor_ranks = 2;
    workers[r] = std::make_unique<Worker>(options[r]);
  }
  std::vector<EngineRequest> endless = requests;
  for (EngineRequest& r : endless) r.max_tokens = 190;
  Worker& leader = *workers[0];
  leader.expect_errors = true;
  const auto give = [&leader](const std::vector<EngineRequest>& some) {
    ASSERT_TRUE(leader.thread->Post([&leader, some](Engine& engine) {
      leader.wanted = static_cast<int>(some.size());
      for (const EngineRequest& request : some) EXPECT_TRUE(engine.Add(request).ok());
    }));
  };
  give(endless);
  while (leader.thread->steps() < 10) absl::SleepFor(absl::Milliseconds(1));
  workers[1]->rank->Stop();
  workers[1].reset();
  ASSERT_EQ(leader.done.get_future().wait_for(std::chrono::seconds(60)), std::future_status::ready);
  EXPECT_GT(leader.errors, 0);
  // Alone it takes no more.
  std::promise<absl::Status> refused;
  ASSERT_TRUE(leader.thread->Post([&](Engine& engine) {
    EngineRequest more = requests[0];
    more.key.request = "more";
    refused.set_value(engine.Add(more));
  }));
  EXPECT_TRUE(absl::IsUnavailable(refused.get_future().get()));
  // The lost rank comes back without its KV: what the leader had in its cache is computed again.
  leader.answers.clear();
  leader.finished = leader.errors = 0;
  leader.done = std::promise<void>();
  workers[1] = std::make_unique<Worker>(options[1]);
  while (leader.rank->tensor_epoch() == 0) absl::SleepFor(absl::Milliseconds(1));
  give(requests);
  ASSERT_EQ(leader.done.get_future().wait_for(std::chrono::seconds(60)), std::future_status::ready);
  EXPECT_EQ(leader.answers, wanted);
  EXPECT_EQ(leader.errors, 0);
  for (auto& w : workers) {
    ASSERT_TRUE(w->thread->Post([rank = w->rank.get()](Engine&) { rank->Leave(); }));
  }
  for (auto& w : workers) {
    for (int i = 0; i < 1000 && !w->rank->left(); ++i) absl::SleepFor(absl::Milliseconds(10));
    EXPECT_TRUE(w->rank->left());
  }
}

TEST(EpRankTest, BitsStayWhileExpertsMove) {
  std::vector<EngineRequest> requests = Requests(16);
  for (EngineRequest& r : requests) r.max_tokens = 60;
  const Answers wanted = Alone(requests);
  const absl::Duration often = absl::Milliseconds(10);
  ExpectBitsOf({.world = 2, .redundant = 2, .rebalance_interval = often}, requests, wanted, false);
  ExpectBitsOf({.world = 4,
                .redundant = 4,
                .lane = "tcp",
                .low_latency_tokens = 0,
                .rebalance_interval = often},
               requests, wanted, true);
}

// Gives `requests` to the worker, which answers them from now on.
void Give(Worker& worker, const std::vector<EngineRequest>& requests) {
  ASSERT_TRUE(worker.thread->Post([&worker, requests](Engine& engine) {
    worker.wanted = static_cast<int>(requests.size());
    for (const EngineRequest& request : requests) EXPECT_TRUE(engine.Add(request).ok());
  }));
}

TEST(EpRankTest, ThoseWhoAreLeftFinishTheStepAndTheLostRankComesBack) {
  std::vector<EngineRequest> requests = Requests(8);
  for (EngineRequest& r : requests) r.max_tokens = 60;
  const Answers wanted = Alone(requests);
  std::vector<EpOptions> options(2);
  for (int r = 0; r < 2; ++r) {
    options[r].rank = r;
    options[r].wait_max = absl::Seconds(5);
    options[r].rebalance_interval = absl::Milliseconds(10);  // in the midst of it
    options[r].rebalance.threshold = 0;
    options[r].overlap = EpOverlap::kOn;
  }
  options[0].peers = options[1].peers = Addresses(2);
  // Each rank is lost once, also the one that all meet at.
  for (const int lost : {1, 0}) {
    std::vector<std::unique_ptr<Worker>> workers(2);
    for (int r = 0; r < 2; ++r) {
      workers[r] = std::make_unique<Worker>(options[r]);
    }
    Worker& survivor = *workers[1 - lost];
    Give(survivor, requests);
    while (survivor.thread->steps() < 10) absl::SleepFor(absl::Milliseconds(1));
    workers[lost]->rank->Stop();
    workers[lost].reset();  // in the midst of a step of both
    ASSERT_EQ(survivor.done.get_future().wait_for(std::chrono::seconds(60)),
              std::future_status::ready);
    EXPECT_EQ(survivor.answers, wanted) << "after the loss of rank " << lost;
    // It comes back while the other is at work again.
    survivor.answers.clear();
    survivor.finished = 0;
    survivor.done = std::promise<void>();
    std::vector<EngineRequest> again = requests;
    for (EngineRequest& r : again) r.key.attempt = 2;
    Give(survivor, again);
    workers[lost] = std::make_unique<Worker>(options[lost]);
    Give(*workers[lost], requests);
    for (auto& w : workers) {
      ASSERT_EQ(w->done.get_future().wait_for(std::chrono::seconds(60)), std::future_status::ready);
      EXPECT_EQ(w->answers, wanted) << "after the return of rank " << lost;
    }
    for (auto& w : workers) {
      ASSERT_TRUE(w->thread->Post([rank = w->rank.get()](Engine&) { rank->Leave(); }));
    }
    for (auto& w : workers) {
      for (int i = 0; i < 1000 && !w->rank->left(); ++i) absl::SleepFor(absl::Milliseconds(10));
      EXPECT_TRUE(w->rank->left());
    }
  }
}

TEST(EpRankTest, AnyPlacementGivesTheSameBits) {
  const std::vector<EngineRequest> requests = Requests(6);
  const Answers wanted = Alone(requests);
  const ModelConfig config = LoadModelConfig(kModel).value();
  const std::string path = ::testing::TempDir() + "/placement.json";
  std::mt19937 rng(3);
  std::ofstream file(path);
  file << R"({"phy2log": [)";
  for (int l = 0, n = 0; l < config.layers; ++l) {
    if (!config.layer_is_moe[l]) continue;
    std::vector<int> row(config.gate.experts + 6);
    for (size_t i = 0; i < row.size(); ++i) {
      row[i] = static_cast<int>(i) < config.gate.experts ? static_cast<int>(i)
                                                         : static_cast<int>(rng() % 3);
    }
    std::shuffle(row.begin(), row.end(), rng);
    file << (n++ > 0 ? ",[" : "[");
    for (size_t i = 0; i < row.size(); ++i) file << (i > 0 ? "," : "") << row[i];
    file << "]";
  }
  file << "]}";
  file.close();
  ExpectBitsOf({.world = 2, .placement_file = path}, requests, wanted, false);
}

TEST(EpRankTest, PlacementsThatCannotBeAreRefusedWithTheNumbers) {
  const ModelConfig config = LoadModelConfig(kModel).value();
  EpOptions ep;
  ep.peers.resize(2);
  ModelConfig dense = config;
  dense.layer_is_moe.assign(dense.layer_is_moe.size(), false);
  EXPECT_TRUE(absl::IsInvalidArgument(MakePlacement(dense, ep).status()));
  ep.redundant_experts = 3;
  const auto odd = MakePlacement(config, ep);
  EXPECT_TRUE(absl::IsInvalidArgument(odd.status()));
  EXPECT_NE(odd.status().message().find("3 redundant"), std::string::npos) << odd.status();
  const std::string path = ::testing::TempDir() + "/bad.json";
  for (const char* text : {"", "[]", R"({"phy2log": 1})", R"({"phy2log": [[0, 1]]})",
                           R"({"phy2log": [["a"]]})", R"({"phy2log": [[-1]]})"}) {
    std::ofstream(path) << text;
    ep.placement_file = path;
    EXPECT_TRUE(absl::IsInvalidArgument(MakePlacement(config, ep).status())) << text;
  }
}

void ExpectRefusal(const absl::Status& status, const std::string& theirs, const std::string& mine) {
  EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status;
  EXPECT_NE(status.message().find(theirs), status.message().npos) << status;
  EXPECT_NE(status.message().find(mine), status.message().npos) << status;
}

TEST(EpRankTest, ARankThatComesBackComputingOtherwiseEndsAloneAndTheOthersGoOn) {
  std::vector<EngineRequest> requests = Requests(4);
  for (EngineRequest& r : requests) r.max_tokens = 60;
  const Answers wanted = Alone(requests);
  for (const int other : {2, 0}) {  // also the one that all meet at
    EpOptions ep;
    ep.peers = Addresses(3);
    ep.redundant_experts = 2;
    std::vector<std::unique_ptr<Worker>> workers(3);
    for (int r = 0; r < 3; ++r) {
      ep.rank = r;
      workers[r] = std::make_unique<Worker>(ep);
    }
    // An answer shows that all three have formed.
    Give(*workers[1], requests);
    ASSERT_EQ(workers[1]->done.get_future().wait_for(std::chrono::seconds(60)),
              std::future_status::ready);
    workers[other]->rank->Stop();
    workers[other].reset();

    ep.rank = other;
    ep.low_latency_tokens = 77;
    BareRank odd(ep);
    ExpectRefusal(odd.rank->Form(), "low-latency:77", "low-latency:128");
    ep.low_latency_tokens = 128;
    ep.peers.push_back("127.0.0.1:1");
    ep.redundant_experts = 0;
    // Another number of ranks is refused too, whatever they compute. Its server is that of `odd`.
    odd.server.reset();
    const absl::Status larger = BareRank(ep).rank->Form();
    EXPECT_TRUE(absl::IsInvalidArgument(larger)) << larger;

    for (int r = 0; r < 3; ++r) {
      if (r == other) continue;
      Worker& w = *workers[r];
      if (r == 1) {
        w.answers.clear();
        w.finished = 0;
        w.done = std::promise<void>();
      }
      std::vector<EngineRequest> again = requests;
      for (EngineRequest& request : again) request.key.attempt = 2;
      Give(w, again);
    }
    for (int r = 0; r < 3; ++r) {
      if (r == other) continue;
      ASSERT_EQ(workers[r]->done.get_future().wait_for(std::chrono::seconds(60)),
                std::future_status::ready);
      EXPECT_EQ(workers[r]->answers, wanted);
      ASSERT_TRUE(
          workers[r]->thread->Post([rank = workers[r]->rank.get()](Engine&) { rank->Leave(); }));
    }
    for (int r = 0; r < 3; ++r) {
      if (r == other) continue;
      for (int i = 0; i < 1000 && !workers[r]->rank->left(); ++i) {
        absl::SleepFor(absl::Milliseconds(10));
      }
      EXPECT_TRUE(workers[r]->rank->left());
    }
  }
}

TEST(EpRankTest, MatesOfATensorGroupHaveTheSameKv) {
  EpOptions ep;
  ep.peers = Addresses(2);
  ep.tensor_ranks = 2;
  BareRank zero(ep);
  zero.rank->UseEngine({.kv_blocks = 100});
  ep.rank = 1;
  BareRank one(ep);
  one.rank->UseEngine({.kv_blocks = 90});
  auto first = std::async(std::launch::async, [&] { return zero.rank->Form(); });
  ExpectRefusal(one.rank->Form(), "kv-blocks:90", "kv-blocks:100");
  zero.rank->Stop();
  EXPECT_TRUE(absl::IsCancelled(first.get()));
}

}  // namespace
}  // namespace switchyard
