#include "engine/ep_rank.h"

#include <poll.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <random>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/file.h"
#include "common/status_macros.h"
#include "moe/balancer.h"

namespace switchyard {
namespace {

// Ranks load their weights before they meet, each at its own pace.
constexpr absl::Duration kFormMax = absl::Minutes(30);
constexpr absl::Duration kKnockLook = absl::Milliseconds(100);
constexpr size_t kRingBytes = 4 << 20;
constexpr int kLoadWindowSteps = 256;
constexpr absl::Duration kShowEvery = absl::Seconds(1);
constexpr size_t kPlacementFileBytesMax = 64 << 20;

// phy2log [MoE layers][E + R], or the same rows for every layer of an even placement.
using Tables = std::vector<std::vector<int32_t>>;

absl::StatusOr<Tables> ReadTables(const std::string& path) {
  ASSIGN_OR_RETURN(const std::string text, ReadFile(path, kPlacementFileBytesMax));
  const auto json = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  const auto refuse = [&](const char* what) {
    return absl::InvalidArgumentError(absl::StrCat("expert-placement ", path, ": ", what));
  };
  if (!json.is_object() || !json.contains("phy2log") || !json["phy2log"].is_array()) {
    return refuse("an object with a list \"phy2log\" is wanted, as `switchyard balance` prints it");
  }
  Tables tables;
  for (const auto& row : json["phy2log"]) {
    if (!row.is_array() || row.size() > kBalancedReplicasMax) return refuse("phy2log: not rows");
    std::vector<int32_t>& table = tables.emplace_back();
    for (const auto& id : row) {
      if (!id.is_number_integer()) return refuse("phy2log: not integers");
      const auto value = id.get<int64_t>();
      if (value < 0 || value > INT32_MAX) return refuse("phy2log: an id is out of range");
      table.push_back(static_cast<int32_t>(value));
    }
  }
  return tables;
}

absl::StatusOr<Tables> EvenTables(int experts, int replicas, int ranks, size_t layers) {
  if (replicas % ranks != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("redundant-experts: ", experts, " experts and ", replicas - experts,
                     " redundant ones cannot be split evenly over ", ranks, " ranks"));
  }
  const std::vector<double> loads(experts, 1.0);
  ASSIGN_OR_RETURN(
      const std::vector<BalancedLayer> balanced,
      BalanceExperts({loads.data(), {1, loads.size()}}, {.replicas = replicas, .ranks = ranks}));
  return Tables(layers, balanced[0].physical_to_logical);
}

uint64_t RandomWord() {
  std::random_device entropy;
  return (uint64_t{entropy()} << 32 | entropy()) | 1;
}

}  // namespace

absl::StatusOr<Placement> MakePlacement(const ModelConfig& config, const EpOptions& options) {
  const int experts = config.gate.experts;
  const auto moe_layers =
      static_cast<size_t>(std::count(config.layer_is_moe.begin(), config.layer_is_moe.end(), true));
  if (options.redundant_experts < 0 || options.redundant_experts > kBalancedReplicasMax - experts) {
    return absl::InvalidArgumentError(absl::StrCat("redundant-experts is ",
                                                   options.redundant_experts, "; allowed are 0 to ",
                                                   kBalancedReplicasMax - experts));
  }
  Tables tables;
  if (options.placement_file.empty()) {
    ASSIGN_OR_RETURN(tables, EvenTables(experts, experts + options.redundant_experts,
                                        options.world(), moe_layers));
  } else {
    ASSIGN_OR_RETURN(tables, ReadTables(options.placement_file));
  }
  const size_t slots = tables.empty() ? 0 : tables[0].size();
  const bool rectangular = std::all_of(tables.begin(), tables.end(),
                                       [&](const auto& row) { return row.size() == slots; });
  if (tables.size() != moe_layers || !rectangular) {
    return absl::InvalidArgumentError(absl::StrCat("expert-placement: ", tables.size(),
                                                   " rows, wanted ", moe_layers,
                                                   " of the same length, one for each MoE layer"));
  }
  std::vector<int32_t> all;
  size_t next = 0;
  for (int l = 0; l < config.layers; ++l) {
    // A dense layer has no experts to place: any row will do.
    const auto& row = tables[config.layer_is_moe[l] ? next++ : 0];
    all.insert(all.end(), row.begin(), row.end());
  }
  return Placement::Create(1, experts, options.world(),
                           {all.data(), {static_cast<size_t>(config.layers), slots}});
}

absl::StatusOr<std::unique_ptr<EpRank>> EpRank::Create(const EpOptions& options, Model* model,
                                                       std::shared_ptr<const Placement> placement,
                                                       const Clock* clock, Logger* log) {
  if (options.rank < 0 || options.rank >= options.world()) {
    return absl::InvalidArgumentError(
        absl::StrCat("ep-rank is ", options.rank, "; ep-peers names ", options.world(), " ranks"));
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
      dispatch_{.top_k = model->config().gate.top_k,
                .hidden = model->config().hidden_size,
                .max_tokens = model->options().max_batch_tokens,
                .dtype = model->options().dtype,
                .low_latency_tokens = options.low_latency_tokens},
      clock_(*clock),
      log_(log),
      incarnation_(RandomWord()),
      rendezvous_({.rank = options.rank,
                   .addresses = options.peers,
                   .incarnation = incarnation_,
                   .grace = options.grace,
                   .on_wait = [this] { ++waits_; }}),
      knocks_(options.peers.size()),
      loads_(std::move(loads)) {}

// Whatever makes two ranks call or compute differently.
std::string EpRank::Config() const {
  uint64_t tables = 14695981039346656037u;  // FNV-1a
  for (int l = 0; l < whole_->layers(); ++l) {
    for (int r = 0; r < whole_->ranks(); ++r) {
      for (const int32_t e : whole_->Hosted(l, RankId(r))) {
        tables = (tables ^ static_cast<uint32_t>(e)) * 1099511628211u;
      }
    }
  }
  return absl::StrCat(model_.numerics_id(), " tokens:", dispatch_.max_tokens,
                      " low-latency:", dispatch_.low_latency_tokens, " placement:", tables);
}

absl::Status EpRank::Place(uint64_t epoch, const std::vector<bool>& present) {
  std::shared_ptr<const Placement> placement = whole_;
  if (std::find(present.begin(), present.end(), false) != present.end()) {
    ASSIGN_OR_RETURN(Placement rest, whole_->Without(whole_->version() + epoch, present));
    placement = std::make_shared<const Placement>(std::move(rest));
  }
  if (placement != placement_) RETURN_IF_ERROR(model_.Rehost(placement));
  placement_ = std::move(placement);
  return absl::OkStatus();
}

absl::Status EpRank::FormOnce(absl::Duration timeout) {
  if (dispatcher_ != nullptr) bytes_of_epochs_ += dispatcher_->bytes_sent();
  computes_ = false;  // what a broken step counted is not a step's load
  dispatcher_.reset();
  group_.reset();
  EpGroupOptions o;
  o.rank = options_.rank;
  o.world = options_.world();
  o.incarnation = incarnation_;
  o.last_epoch = epoch_;
  o.config = Config();
  o.lanes = options_.lanes;
  o.net_devices = options_.net_devices;
  o.ring_bytes = EpDispatcher::RingBytes(dispatch_, kRingBytes);
  o.wait_max = options_.wait_max;
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
  uint64_t last_epoch = epoch_;
  for (int p = 0; p < o.world; ++p) {
    if (theirs[p].empty()) continue;
    ASSIGN_OR_RETURN(hellos[p], DecodeEpHello(theirs[p]));
    present[p] = true;
    last_epoch = std::max(last_epoch, hellos[p]->last_epoch);
  }
  RETURN_IF_ERROR(Place(last_epoch + 1, present));
  RETURN_IF_ERROR(group->Connect(hellos));
  ASSIGN_OR_RETURN(dispatcher_, EpDispatcher::Create(group.get(), placement_, dispatch_));
  group_ = std::move(group);
  epoch_ = group_->epoch();
  told_ = false;
  model_.UseDispatcher(dispatcher_.get());
  Show();
  return absl::OkStatus();
}

void EpRank::CountStep() {
  if (std::exchange(computes_, false)) (void)loads_.AddStep(dispatcher_->step_counts());
  if (clock_.Now() - shown_ >= kShowEvery) Show();
}

void EpRank::Show() {
  shown_ = clock_.Now();
  EpSnapshot s{.epoch = epoch_,
               .ranks = group_->present_ranks(),
               .bytes_sent = bytes_of_epochs_ + dispatcher_->bytes_sent()};
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
  return (leaving_ && !told_) || group_->StepOpened() || Knocked();
}

absl::StatusOr<bool> EpRank::Open(int rows) {
  const auto wants = [](uint32_t what) {
    return [what](const StepHeader& h) { return (h.wants & what) != 0; };
  };
  for (;;) {
    if (left()) return absl::CancelledError("the expert-parallel group has ended");
    CountStep();
    StepHeader mine;
    mine.rows = static_cast<uint32_t>(rows);
    mine.placement = placement_->version();
    mine.wants = (leaving_ ? kWantsToLeave : 0) | (Knocked() ? kWantsToMeet : 0);
    told_ = leaving_;
    ASSIGN_OR_RETURN(const std::span<const StepHeader> headers, group_->OpenStep(mine));
    if (std::any_of(headers.begin(), headers.end(), wants(kWantsToMeet))) {
      RETURN_IF_ERROR(Form());
      continue;
    }
    for (int p = 0; p < options_.world(); ++p) {
      if (!group_->present(p) || headers[p].placement == mine.placement) continue;
      return absl::InternalError(absl::StrCat("expert-parallel rank ", p, " has placement ",
                                              headers[p].placement, ", this one ", mine.placement));
    }
    dispatcher_->BeginStep(headers);
    if (std::any_of(headers.begin(), headers.end(),
                    [](const StepHeader& h) { return h.rows > 0; })) {
      computes_ = rows > 0;
      return true;
    }
    if (std::count_if(headers.begin(), headers.end(), wants(kWantsToLeave)) ==
        group_->present_ranks()) {
      Show();
      left_ = true;
    }
    return false;
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
