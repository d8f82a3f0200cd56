// A prefill and a decode worker in one process, driven as the router drives them: real gRPC, real
// UCX, the stored model.
#include <gtest/gtest.h>

#include <bit>
#include <map>

#include "absl/strings/str_cat.h"
#include "cluster/worker_client.h"
#include "common/clock.h"
#include "decode/decode_worker.h"
#include "engine/engine.h"
#include "engine/wire_conversion.h"
#include "prefill/prefill_worker.h"

namespace switchyard {
namespace {

namespace pb = cluster::v1;

constexpr char kModel[] = "models/fables-7m";
constexpr absl::Duration kPatience = absl::Seconds(60);  // sanitizer builds are slow

WorkerOptions Options(const std::string& name, const std::string& lane, int kv_blocks = 0) {
  WorkerOptions options;
  options.name = name;
  options.model_dir = kModel;
  options.kv_lanes = {lane};
  options.engine.prefill_chunk = 64;
  options.engine.max_num_batched_tokens = 128;
  options.engine.kv_blocks = kv_blocks == 0 ? 512 : kv_blocks;
  options.engine.max_model_len = 2048;  // by name: more than a small pool holds
  return options;
}

// The router's end of one worker's stream.
class Driver {
 public:
  explicit Driver(int port)
      : client_(absl::StrCat("127.0.0.1:", port), "test-router",
                {.registered =
                     [this](StreamId id, pb::Registration r) {
                       MutexLock lock(mu_);
                       stream_ = id;
                       registration_ = std::move(r);
                       changed_.NotifyAll();
                     },
                 .events =
                     [this](StreamId, const std::shared_ptr<const pb::StepEvents>& events) {
                       MutexLock lock(mu_);
                       for (const auto& e : events->events())
                         events_[FromProto(e.id())].push_back(e);
                       changed_.NotifyAll();
                     },
                 .heartbeat =
                     [this](StreamId, const pb::Heartbeat& h) {
                       MutexLock lock(mu_);
                       heartbeat_ = h;
                       ++heartbeats_;
                       changed_.NotifyAll();
                     },
                 .lost =
                     [this](StreamId, const absl::Status&) {
                       MutexLock lock(mu_);
                       stream_ = StreamId();
                     },
                 .away = [](const absl::Status&) {}}) {
    Await([this] { return stream_ != StreamId(); });
  }

  void Submit(pb::Submit submit) {
    pb::ToWorker message;
    *message.mutable_submit() = std::move(submit);
    ASSERT_TRUE(client_.Send(stream(), std::move(message)));
  }
  void Abort(const AttemptKey& key) {
    pb::ToWorker message;
    ToProto(key, message.mutable_abort()->mutable_id());
    ASSERT_TRUE(client_.Send(stream(), std::move(message)));
  }
  void CancelStream() { client_.Cancel(stream()); }

  // The attempt's events, once there are `count` of them or the attempt is over.
  std::vector<pb::AttemptEvent> Events(const AttemptKey& key, size_t count = SIZE_MAX) {
    std::vector<pb::AttemptEvent> out;
    Await([&] {
      out = events_[key];
      return out.size() >= count || (!out.empty() && Last(out.back()));
    });
    if (out.empty()) out.emplace_back();  // the failure has been added
    return out;
  }
  bool Over(const AttemptKey& key) {
    MutexLock lock(mu_);
    return !events_[key].empty() && Last(events_[key].back());
  }
  pb::Registration registration() {
    MutexLock lock(mu_);
    return registration_;
  }
  // Two heartbeats in a row that say: nothing is held here.
  void ExpectEverythingFree() {
    int calm = 0;
    uint64_t seen = 0;
    pb::Heartbeat last;
    Await([&] {
      if (seen == heartbeats_) return false;
      seen = heartbeats_;
      last = heartbeat_;
      const bool free = heartbeat_.kv_blocks_free() == registration_.kv_blocks_total();
      calm = free && heartbeat_.running() == 0 && heartbeat_.waiting() == 0 ? calm + 1 : 0;
      return calm >= 2;
    });
    EXPECT_EQ(last.kv_blocks_free(), registration_.kv_blocks_total()) << last.ShortDebugString();
  }

 private:
  static bool Last(const pb::AttemptEvent& e) {
    return e.finish() != pb::FINISH_NONE || e.handed_off();
  }
  StreamId stream() {
    MutexLock lock(mu_);
    return stream_;
  }
  void Await(const std::function<bool()>& condition) {
    const absl::Time end = clock_.Now() + kPatience;
    MutexLock lock(mu_);
    while (!condition()) {
      if (clock_.Now() >= end) {
        ADD_FAILURE() << "waited in vain for " << kPatience;
        return;
      }
      changed_.WaitFor(mu_, absl::Milliseconds(100));
    }
  }

  const MonotonicClock clock_;
  Mutex mu_;
  CondVar changed_;
  StreamId stream_;
  pb::Registration registration_;
  pb::Heartbeat heartbeat_;
  uint64_t heartbeats_ = 0;
  std::map<AttemptKey, std::vector<pb::AttemptEvent>> events_;
  WorkerClient client_;  // last: its callbacks use the rest
};

struct Pair {
  explicit Pair(const std::string& lane, int decode_blocks = 0) {
    auto p = PrefillWorker::Create(Options("prefill-0", lane));
    auto d = DecodeWorker::Create(Options("decode-0", lane, decode_blocks));
    if (!p.ok() || !d.ok()) {
      ADD_FAILURE() << p.status() << " " << d.status();
      std::abort();
    }
    prefill_worker = *std::move(p);
    decode_worker = *std::move(d);
    prefill = std::make_unique<Driver>(prefill_worker->port());
    decode = std::make_unique<Driver>(decode_worker->port());
  }

  void Submit(const EngineRequest& request) {
    pb::Submit submit;
    ToProto(request, &submit);
    submit.set_remote_prefill(true);
    decode->Submit(submit);
    submit.set_remote_prefill(false);
    submit.set_decode_address(decode->registration().handoff_address());
    submit.set_decode_incarnation(decode->registration().incarnation());
    prefill->Submit(submit);
  }

  std::unique_ptr<PrefillWorker> prefill_worker;
  std::unique_ptr<DecodeWorker> decode_worker;
  std::unique_ptr<Driver> prefill, decode;
};

std::vector<EngineRequest> Requests() {
  std::vector<EngineRequest> requests;
  for (const int length : {1, 2, 15, 16, 17, 63, 64, 65, 200, 333}) {
    EngineRequest r;
    r.key = {absl::StrCat("r", length), 1};
    for (int i = 0; i < length; ++i) r.prompt_ids.push_back(4 + (i * 131 + length * 17) % 4000);
    r.sampling.temperature = length % 2 == 0 ? 0.0f : 0.9f;
    r.sampling.top_k = length % 3 == 0 ? 20 : 0;
    r.sampling.seed = 1000 + length;
    r.sampling.logprobs = 2;
    r.max_tokens = length == 2 ? 1 : 12;  // one that its first token ends
    r.ignore_eos = true;
    if (length == 17) r.prompt_logprobs = 0;
    if (length == 65) r.generated_ids = {5, 6, 7};  // a replay
    requests.push_back(r);
  }
  return requests;
}

// What the plain engine says, one request at a time.
std::vector<SampledToken> Plain(Engine& engine, const EngineRequest& request) {
  std::vector<SampledToken> tokens;
  EXPECT_TRUE(engine.Add(request).ok());
  while (engine.HasWork()) {
    auto outputs = engine.Step();
    EXPECT_TRUE(outputs.ok()) << outputs.status();
    for (const EngineOutput& o : *outputs) tokens.push_back(*o.token);
  }
  return tokens;
}

void ExpectSame(const std::vector<SampledToken>& want, const std::vector<pb::AttemptEvent>& got,
                int first_index) {
  ASSERT_EQ(want.size(), got.size());
  for (size_t i = 0; i < want.size(); ++i) {
    const SampledToken token = FromProto(got[i].token());
    EXPECT_EQ(got[i].index(), first_index + static_cast<int>(i));
    EXPECT_EQ(token.token, want[i].token);
    EXPECT_EQ(token.rank, want[i].rank);
    EXPECT_EQ(std::bit_cast<uint32_t>(token.logprob), std::bit_cast<uint32_t>(want[i].logprob));
    EXPECT_EQ(token.top, want[i].top);
  }
}

class WorkersTest : public testing::TestWithParam<std::string> {};

TEST_P(WorkersTest, TokensAndLogprobsAreThePlainEnginesToTheLastBit) {
  auto model = Model::Load(kModel, {});
  ASSERT_TRUE(model.ok()) << model.status();
  auto engine = Engine::Create(model->get(), {});
  ASSERT_TRUE(engine.ok()) << engine.status();
  Pair pair(GetParam());
  const auto requests = Requests();
  for (const EngineRequest& r : requests) pair.Submit(r);
  for (const EngineRequest& r : requests) {
    SCOPED_TRACE(r.key.request);
    const auto want = Plain(**engine, r);
    auto got = pair.prefill->Events(r.key);
    ASSERT_FALSE(got.empty());
    if (r.prompt_logprobs >= 0) {
      EXPECT_EQ(got[0].prompt_logprobs_size(), static_cast<int>(r.prompt_ids.size()) - 1);
    }
    if (r.max_tokens > 1) {
      EXPECT_TRUE(got.back().handed_off()) << got.back().ShortDebugString();
      EXPECT_GT(got.back().kv_bytes_moved(), 0u);
      EXPECT_EQ(got.back().kv_lane(), GetParam());
      const uint64_t bytes = got.back().kv_bytes_moved();
      got.pop_back();
      for (auto& e : pair.decode->Events(r.key)) got.push_back(std::move(e));
      EXPECT_EQ(got.back().kv_bytes_moved(), bytes) << "both ranks tell, and tell the same";
      EXPECT_EQ(got.back().kv_lane(), GetParam());
    }
    EXPECT_EQ(got.back().finish(), pb::FINISH_LENGTH) << got.back().ShortDebugString();
    ExpectSame(want, got, static_cast<int>(r.generated_ids.size()));
  }
  pair.prefill->ExpectEverythingFree();
  pair.decode->ExpectEverythingFree();
}

INSTANTIATE_TEST_SUITE_P(Lanes, WorkersTest, testing::Values("shm", "tcp"),
                         [](const auto& lane) { return lane.param; });

TEST(DecodeWorkerTest, ComputesAPromptItself) {
  Pair pair("tcp");
  pb::Submit submit;
  ToProto(Requests()[4], &submit);
  pair.decode->Submit(submit);
  const auto events = pair.decode->Events(Requests()[4].key);
  EXPECT_EQ(events.size(), 12u);
  pair.decode->ExpectEverythingFree();
}

TEST(WorkersAbortTest, AbortedAttemptsFreeEverythingOnBothRanks) {
  Pair pair("shm");
  auto requests = Requests();
  for (auto& r : requests) {
    r.max_tokens = 300;
    pair.Submit(r);
  }
  pair.prefill->Events(requests[0].key, 1);  // some are queued, some on their way, some decode
  for (const auto& r : requests) {
    pair.prefill->Abort(r.key);
    pair.decode->Abort(r.key);
  }
  pair.prefill->ExpectEverythingFree();
  pair.decode->ExpectEverythingFree();
}

TEST(WorkersAbortTest, LostRouterEndsItsAttempts) {
  Pair pair("tcp");
  auto requests = Requests();
  for (auto& r : requests) {
    r.max_tokens = 300;
    pair.Submit(r);
  }
  pair.prefill->Events(requests[0].key, 1);
  pair.prefill->CancelStream();
  pair.decode->CancelStream();
  pair.prefill->ExpectEverythingFree();
  pair.decode->ExpectEverythingFree();
}

TEST(WorkersFaultTest, DecodeRankWithoutBlocksIsResourceExhausted) {
  Pair pair("tcp", /*decode_blocks=*/4);
  const EngineRequest request = Requests()[8];
  pair.Submit(request);
  const auto events = pair.prefill->Events(request.key);
  EXPECT_EQ(ErrorOf(events.back()).code(), absl::StatusCode::kResourceExhausted)
      << events.back().ShortDebugString();
  pair.decode->Abort(request.key);
  pair.prefill->ExpectEverythingFree();
  pair.decode->ExpectEverythingFree();
}

TEST(WorkersFaultTest, LostDecodeRankIsUnavailable) {
  Pair pair("tcp");
  std::vector<EngineRequest> requests;
  for (int i = 0; i < 24; ++i) {
    requests.push_back(Requests()[9]);
    requests.back().key.request = absl::StrCat("lost-", i);
    pair.Submit(requests.back());
  }
  pair.prefill->Events(requests[1].key, 1);
  pair.decode_worker.reset();
  // It had the time to answer some calls while it went.
  int unavailable = 0;
  for (const auto& r : requests) {
    const auto last = pair.prefill->Events(r.key).back();
    if (last.handed_off()) continue;
    const absl::Status error = ErrorOf(last);
    unavailable += absl::IsUnavailable(error);
    EXPECT_TRUE(absl::IsUnavailable(error) || absl::IsAborted(error) || absl::IsCancelled(error))
        << error;
  }
  EXPECT_GT(unavailable, 0);
  pair.prefill->ExpectEverythingFree();
}

TEST(WorkersFaultTest, AnotherIncarnationIsUnavailable) {
  Pair pair("tcp");
  pb::Submit submit;
  ToProto(Requests()[3], &submit);
  submit.set_decode_address(pair.decode->registration().handoff_address());
  submit.set_decode_incarnation(pair.decode->registration().incarnation() + 2);
  pair.prefill->Submit(submit);
  const auto events = pair.prefill->Events(Requests()[3].key);
  EXPECT_EQ(ErrorOf(events.back()).code(), absl::StatusCode::kUnavailable);
}

TEST(WorkersDrainTest, FinishesWhatRunsAndRefusesWhatComes) {
  Pair pair("tcp");
  const auto requests = Requests();
  pair.Submit(requests[5]);
  pair.prefill->Events(requests[5].key, 1);
  pair.prefill_worker->Drain(kPatience);
  EXPECT_TRUE(pair.prefill->Over(requests[5].key) ||
              pair.prefill->Events(requests[5].key).back().handed_off());
  pair.Submit(requests[6]);
  EXPECT_EQ(ErrorOf(pair.prefill->Events(requests[6].key).back()).code(),
            absl::StatusCode::kUnavailable);
  pair.decode->Abort(requests[6].key);
  pair.decode_worker->Drain(kPatience);
  EXPECT_EQ(pair.decode->Events(requests[5].key).back().finish(), pb::FINISH_LENGTH);
}

}  // namespace
}  // namespace switchyard
