#include "engine/ep_rank.h"

#include <poll.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/random_word.h"
#include "common/status_macros.h"

namespace switchyard {
namespace {

// Ranks load their weights before they meet, each at its own pace.
constexpr absl::Duration kFormMax = absl::Minutes(30);
constexpr absl::Duration kKnockLook = absl::Milliseconds(100);
constexpr size_t kRingBytes = 4 << 20;
constexpr int kLoadWindowSteps = 256;
constexpr size_t kBatchRowWords = 64;
constexpr absl::Duration kShowEvery = absl::Seconds(1);
// What ranks tell each other at once: tables, or loads.
size_t GatherBytes(const Placement& p) {
  const size_t slots = static_cast<size_t>(p.slots_per_rank()) * p.ranks();
  return static_cast<size_t>(p.layers()) *
             std::max(slots * sizeof(int32_t), p.experts() * sizeof(int64_t)) +
         sizeof(uint64_t);
}

// Devices compute in two halves where they are asked to: how long a step takes is not measured
// there.
EpOverlap OverlapOf(const EpOptions& options, const Model& model) {
  const bool measure = options.overlap == EpOverlap::kAuto;
  return measure && model.options().device != Device::kCpu ? EpOverlap::kOff : options.overlap;
}

}  // namespace

absl::StatusOr<std::unique_ptr<EpRank>> EpRank::Create(const EpOptions& options, Model* model,
                                                       std::shared_ptr<const Placement> placement,
                                                       const Clock* clock, Logger* log) {
  if (options.rank < 0 || options.rank >= options.world()) {
    return absl::InvalidArgumentError(
        absl::StrCat("ep-rank is ", options.rank, "; ep-peers names ", options.world(), " ranks"));
  }
  if (options.tensor_ranks < 1 || options.world() % options.tensor_ranks != 0) {
    return absl::InvalidArgumentError(absl::StrCat("tensor parallelism of ", options.tensor_ranks,
                                                   " must divide the ", options.world(),
                                                   " ranks that share the experts"));
  }
  const int64_t slots = int64_t{placement->slots_per_rank()} * placement->ranks();
  if (options.rebalance_interval > absl::ZeroDuration() &&
      slots > int64_t{placement->experts()} * placement->ranks()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "ep-rebalance-interval-seconds: ", slots, " replicas of ", placement->experts(),
        " experts: more than one of each on each of ", placement->ranks(), " ranks"));
  }
  if (GatherBytes(*placement) > kEpRingBytesMax / 8) {
    return absl::InvalidArgumentError(absl::StrCat("a placement of ", GatherBytes(*placement),
                                                   " bytes, at most ", kEpRingBytesMax / 8));
  }
  ASSIGN_OR_RETURN(LoadStatistics loads,
                   LoadStatistics::Create({.layers = placement->layers(),
                                           .experts = placement->experts(),
                                           .window_steps = kLoadWindowSteps}));
  return std::unique_ptr<EpRank>(
      new EpRank(options, model, std::move(placement), clock, log, std::move(loads)));
}

EpRank::EpRank(const EpOptions& options, Model* model, std::shared_ptr<const Placement> placement,
               const Clock* clock, Logger* log, LoadStatistics loads)
    : options_(options),
      model_(*model),
      whole_(std::move(placement)),
      placement_(whole_),
      first_digest_(TableDigest(*whole_)),
      dispatch_{.top_k = model->config().gate.top_k,
                .hidden = model->config().hidden_size,
                .max_tokens = model->options().max_batch_tokens,
                .dtype = model->options().dtype,
                .int8_tokens = model->options().int8_tokens(),
                .reduced = model->options().reduced_combine,
                .low_latency_tokens = options.low_latency_tokens,
                .overlap = OverlapOf(options, *model),
                .tensor_ranks = options.tensor_ranks,
                .device_lane = options.device_lane,
                .device_ctas = options.device_ctas},
      terms_(MakeTerms()),
      clock_(*clock),
      log_(log),
      incarnation_(RandomWord() | 1),
      rendezvous_(
          {.rank = options.rank,
           .addresses = options.peers,
           .incarnation = incarnation_,
           .grace = options.grace,
           .tls = options.tls,
           .check = [this](int peer, const std::string& hello) { return CheckTerms(peer, hello); },
           .on_wait = [this] { ++waits_; }}),
      knocks_(options.peers.size()),
      loads_(std::move(loads)),
      rebalancer_(options.rebalance_interval, whole_->layers(), whole_->experts()),
      fetcher_(model, RankId(options.rank), options.rebalance_bytes_per_second, clock) {}

EpHello EpRank::MakeTerms() const {
  EpHello terms;
  terms.rank = options_.rank;
  terms.world = options_.world();
  terms.host_id = HostId();
  terms.lanes = options_.lanes;
  terms.ring_bytes = EpDispatcher::RingBytes(
      dispatch_, std::max(kRingBytes, std::bit_ceil(8 * GatherBytes(*whole_))));
  // Whatever makes two ranks call, compute or plan differently.
  terms.config = absl::StrCat(
      model_.numerics_id(), " tokens:", dispatch_.max_tokens,
      " low-latency:", dispatch_.low_latency_tokens,
      " overlap:", static_cast<int>(dispatch_.overlap),
      " payload:", dispatch_.int8_tokens ? "int8" : "dtype", " tensor:", options_.tensor_ranks,
      " device-lane:", static_cast<int>(dispatch_.device_lane),
      " device-ctas:", dispatch_.device_ctas, " placement:", first_digest_,
      " rebalance:", options_.rebalance.threshold, ",", options_.rebalance.fetched_experts_max);
  return terms;
}

void EpRank::UseEngine(const EngineOptions& options) {
  if (options_.tensor_ranks == 1) return;
  absl::StrAppend(&terms_.config, " max-model-len:", options.max_model_len,
                  " block-size:", options.block_size, " kv-blocks:", options.kv_blocks,
                  " max-num-seqs:", options.max_num_seqs);
}

absl::Status EpRank::CheckTerms(int peer, const std::string& hello) const {
  ASSIGN_OR_RETURN(const EpHello theirs, DecodeEpHello(hello));
  return CheckEpHello(terms_, peer, theirs);
}

absl::Status EpRank::FormOnce(absl::Duration timeout) {
  if (dispatcher_ != nullptr) AddCounters(&past_);
  computes_ = false;  // what a broken step counted is not a step's load
  fetcher_.Cancel();
  dispatcher_.reset();
  group_.reset();
  EpGroupOptions o;
  o.rank = options_.rank;
  o.world = options_.world();
  o.incarnation = incarnation_;
  o.last_epoch = epoch_;
  o.config = terms_.config;
  o.lanes = options_.lanes;
  o.net_devices = options_.net_devices;
  o.ring_bytes = terms_.ring_bytes;
  o.wait_max = options_.wait_max;
  o.alive_after = options_.alive_after;
  o.on_wait = [this] { ++waits_; };
  o.alive = [this](int peer, uint64_t incarnation) {
    ++waits_;
    // One that knocks has not got the answer that made this epoch: it is not coming.
    return rendezvous_.KnocksOf(peer).count == knocks_[peer] &&
           rendezvous_.Alive(peer, incarnation);
  };
  // Ranks that share cores would only keep each other from computing.
  const auto cores = static_cast<int>(std::thread::hardware_concurrency());
  if (o.world * model_.options().threads > cores) o.spin = absl::ZeroDuration();
  ASSIGN_OR_RETURN(auto group, EpGroup::Create(o, &clock_));
  std::vector<std::string> mine(o.world);
  for (int p = 0; p < o.world; ++p) {
    if (p != o.rank) mine[p] = EncodeEpHello(group->HelloFor(p));
  }
  ASSIGN_OR_RETURN(const std::vector<std::string> theirs,
                   rendezvous_.Meet(mine, /*was_member=*/epoch_ != 0, timeout));
  for (int p = 0; p < o.world; ++p) knocks_[p] = rendezvous_.KnocksOf(p).count;
  std::vector<std::optional<EpHello>> hellos(o.world);
  std::vector<bool> present(o.world);
  present[o.rank] = true;
  for (int p = 0; p < o.world; ++p) {
    if (theirs[p].empty()) continue;
    ASSIGN_OR_RETURN(hellos[p], DecodeEpHello(theirs[p]));
    present[p] = true;
  }
  RETURN_IF_ERROR(group->Connect(hellos));
  RETURN_IF_ERROR(Place(*group, present));
  ASSIGN_OR_RETURN(dispatcher_, EpDispatcher::Create(group.get(), placement_, dispatch_));
  group_ = std::move(group);
  epoch_ = group_->epoch();
  told_ = false;
  lane_told_ = false;
  model_.UseDispatcher(dispatcher_.get());
  model_.UseExchange(options_.tensor_ranks > 1 ? dispatcher_.get() : nullptr);
  CountMates();
  Show();
  return absl::OkStatus();
}

void EpRank::CountStep() {
  if (std::exchange(computes_, false)) {
    (void)loads_.AddStep(dispatcher_->step_counts());
    rebalancer_.Count(dispatcher_->step_counts());
  }
  TellLane();
  if (clock_.Now() - shown_ >= kShowEvery) Show();
}

void EpRank::TellLane() {
  if (lane_told_ || log_ == nullptr || dispatcher_->rows_travel().empty()) return;
  lane_told_ = true;
  log_->Info("expert-parallel rows between devices",
             {{"epoch", epoch_}, {"travel", dispatcher_->rows_travel()}});
}

void EpRank::AddCounters(EpSnapshot* to) const {
  to->bytes_sent += dispatcher_->bytes_sent();
  to->overlapped_steps += dispatcher_->overlapped_steps();
  to->waited += dispatcher_->waited();
}

void EpRank::Show() {
  shown_ = clock_.Now();
  EpSnapshot s = past_;
  AddCounters(&s);
  s.epoch = epoch_;
  s.ranks = group_->present_ranks();
  s.rebalance = rebalance_;
  s.rebalance.placement = whole_->version();
  const auto experts = static_cast<size_t>(placement_->experts());
  for (int l = 0; l < placement_->layers(); ++l) {
    if (!model_.config().layer_is_moe[l]) continue;
    const int64_t* const row = loads_.totals().row(l);
    s.moe_layers.push_back(l);
    s.expert_loads.emplace_back(row, row + experts);
    s.rank_loads.push_back(placement_->RankLoads(l, std::vector<double>(row, row + experts)));
  }
  MutexLock lock(mu_);
  snapshot_ = std::move(s);
}

absl::Status EpRank::Form() {
  const absl::Time deadline = clock_.Now() + kFormMax;
  if (log_ != nullptr && group_ != nullptr) {
    log_->Warning("expert-parallel epoch ends",
                  {{"epoch", epoch_}, {"why", group_->status().ToString()}});
  }
  for (;;) {
    const absl::Status formed = FormOnce(deadline - clock_.Now());
    if (formed.ok()) break;
    // A rank that died while all met: they meet again.
    if (!absl::IsUnavailable(formed)) return formed;
    if (log_ != nullptr) {
      log_->Warning("expert-parallel ranks meet again", {{"why", formed.ToString()}});
    }
  }
  if (log_ == nullptr) return absl::OkStatus();
  std::string absent;
  for (int p = 0; p < options_.world(); ++p) {
    if (!group_->present(p)) absl::StrAppend(&absent, absent.empty() ? "" : ",", p);
  }
  log_->Info("expert-parallel epoch", {{"epoch", epoch_},
                                       {"rank", options_.rank},
                                       {"ranks", options_.world()},
                                       {"absent", absent.empty() ? "none" : absent},
                                       {"lanes", group_->DescribeLanes()}});
  return absl::OkStatus();
}

bool EpRank::Knocked() const {
  for (int p = 0; p < options_.world(); ++p) {
    const Rendezvous::Knocks knocks = rendezvous_.KnocksOf(p);
    if (knocks.count != knocks_[p] && knocks.incarnation != group_->incarnation(p)) return true;
  }
  return false;
}

bool EpRank::StepWanted() {
  if (group_ == nullptr || left()) return false;
  TakeFetched();
  return (leaving_ && !told_) || rebalancer_.untold() || group_->StepOpened() || Knocked();
}

absl::StatusOr<bool> EpRank::Open(int rows, size_t batch_words) {
  const auto wants = [](uint32_t what) {
    return [what](const StepHeader& h) { return (h.wants & what) != 0; };
  };
  for (;;) {
    if (left()) return absl::CancelledError("the expert-parallel group has ended");
    CountStep();
    TakeFetched();
    StepHeader mine;
    mine.rows = static_cast<uint32_t>(rows);
    mine.batch_words = static_cast<uint32_t>(batch_words);
    mine.placement = placement_->version();
    mine.micros = dispatcher_->step_micros();
    mine.wants = (leaving_ ? kWantsToLeave : 0) | (Knocked() ? kWantsToMeet : 0);
    told_ = leaving_;
    rebalancer_.Fill(options_.rank, clock_.Now(), &mine);
    ASSIGN_OR_RETURN(const std::span<const StepHeader> headers, group_->OpenStep(mine));
    if (std::any_of(headers.begin(), headers.end(), wants(kWantsToMeet))) {
      const uint64_t before = tensor_epoch();
      RETURN_IF_ERROR(Form());
      if (tensor_epoch() != before) return false;  // these rows cannot be computed any more
      continue;
    }
    for (int p = 0; p < options_.world(); ++p) {
      if (!group_->present(p) || headers[p].placement == mine.placement) continue;
      return absl::InternalError(absl::StrCat("expert-parallel rank ", p, " has placement ",
                                              headers[p].placement, ", this one ", mine.placement));
    }
    const bool computes =
        std::any_of(headers.begin(), headers.end(), [](const StepHeader& h) { return h.rows > 0; });
    const bool all_leave = std::count_if(headers.begin(), headers.end(), wants(kWantsToLeave)) ==
                           group_->present_ranks();
    RETURN_IF_ERROR(Rebalance(headers));
    dispatcher_->BeginStep(headers);
    if (computes) {
      computes_ = headers[leader()].rows > 0;
      batch_words_ = headers[leader()].batch_words;
      return true;
    }
    if (all_leave) {
      Show();
      left_ = true;
    }
    return false;
  }
}

absl::Status EpRank::ShareBatch(std::vector<int32_t>* words, size_t words_max) {
  if (batch_words_ > words_max) {
    return absl::InvalidArgumentError(absl::StrCat("expert-parallel rank ", leader(),
                                                   " shares a batch of ", batch_words_,
                                                   " words; at most ", words_max));
  }
  // As rows of numbers: in FP32 every bit arrives.
  const Matrix<float> none(nullptr, {0, kBatchRowWords});
  words->resize((batch_words_ + kBatchRowWords - 1) / kBatchRowWords * kBatchRowWords);
  const Matrix<float> all(reinterpret_cast<float*>(words->data()),
                          {words->size() / kBatchRowWords, kBatchRowWords});
  std::vector<Matrix<const float>> to(tensor_ranks(), tensor_rank() == 0 ? all : none);
  std::vector<Matrix<float>> from(tensor_ranks(), none);
  if (tensor_rank() != 0) from[0] = all;
  RETURN_IF_ERROR(dispatcher_->Exchange(to, from, DType::kFloat32));
  words->resize(batch_words_);
  return absl::OkStatus();
}

void EpRank::CountMates() {
  std::vector<uint64_t> mates;
  bool whole = true;
  for (int p = leader(); p < leader() + options_.tensor_ranks; ++p) {
    whole = whole && group_->present(p);
    mates.push_back(group_->incarnation(p));
  }
  if (!whole) {
    tensor_epoch_ = 0;
  } else if (tensor_epoch_ == 0 || mates != mates_) {
    tensor_epoch_ = ++tensor_epochs_;
    mates_ = std::move(mates);
  }
}

void EpRank::Sleep(int wake_fd, absl::Duration timeout) {
  if (group_ != nullptr) CountStep();
  // A knock wakes nobody: look for one from time to time.
  if (!left()) return group_->Sleep(wake_fd, std::min(timeout, kKnockLook));
  pollfd fd = {wake_fd, POLLIN, 0};  // the peers may be gone: nothing is to be heard from them
  poll(&fd, 1, static_cast<int>(absl::ToInt64Milliseconds(timeout)));
}

}  // namespace switchyard
