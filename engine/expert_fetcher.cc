#include "engine/expert_fetcher.h"

#include <sys/resource.h>
#include <unistd.h>

#include <utility>

#include "common/check.h"
#include "common/status_macros.h"

namespace switchyard {
namespace {
// A tenth of the weight of a thread that computes, where they share a core.
constexpr int kNice = 10;
}  // namespace

ExpertFetcher::ExpertFetcher(const Model* model, RankId rank, double bytes_per_second,
                             const Clock* clock)
    : model_(*model),
      rank_(rank),
      bytes_per_second_(bytes_per_second),
      clock_(*clock),
      thread_([this] { Run(); }) {}

ExpertFetcher::~ExpertFetcher() {
  {
    MutexLock lock(mu_);
    stop_ = true;
    changed_.NotifyAll();
  }
  thread_.join();
}

void ExpertFetcher::Start(std::shared_ptr<const Placement> current,
                          std::function<absl::StatusOr<RebalancePlan>()> plan) {
  Cancel();
  MutexLock lock(mu_);
  job_ = Job{.number = number_, .current = std::move(current), .plan = std::move(plan)};
  changed_.NotifyAll();
}

absl::StatusOr<ExpertFetcher::Fetched> ExpertFetcher::Take() {
  MutexLock lock(mu_);
  SY_CHECK(fetched_);
  done_.store(false, std::memory_order_relaxed);
  return *std::exchange(fetched_, std::nullopt);
}

void ExpertFetcher::Cancel() {
  MutexLock lock(mu_);
  ++number_;
  job_.reset();
  if (fetched_ && fetched_->ok()) unused_.push_back(std::move((*fetched_)->experts));
  fetched_.reset();
  done_.store(false, std::memory_order_relaxed);
  changed_.NotifyAll();
}

void ExpertFetcher::Free(SpareExperts experts) {
  MutexLock lock(mu_);
  unused_.push_back(std::move(experts));
  changed_.NotifyAll();
}

bool ExpertFetcher::WaitUntil(absl::Time due, const Job& job) const {
  MutexLock lock(mu_);
  for (;;) {
    if (stop_ || job.number != number_) return false;
    const absl::Duration left = due - clock_.Now();
    if (left <= absl::ZeroDuration()) return true;
    changed_.WaitFor(mu_, left);
  }
}

absl::StatusOr<ExpertFetcher::Fetched> ExpertFetcher::Fetch(const Job& job) const {
  const absl::Time begin = clock_.Now();
  Fetched out;
  ASSIGN_OR_RETURN(out.plan, job.plan());
  if (out.plan.placement == nullptr) return out;
  ASSIGN_OR_RETURN(const auto source, model_.OpenExperts());
  for (const NewExpert& e : NewExperts(*job.current, *out.plan.placement, rank_)) {
    const absl::Time due =
        begin + absl::Seconds(static_cast<double>(out.bytes) / bytes_per_second_);
    if (!WaitUntil(due, job)) return absl::CancelledError("not wanted any more");
    ASSIGN_OR_RETURN(PackedExpert expert, source->Load({e.layer, e.expert}));
    out.bytes += BytesOf(expert);
    out.experts.emplace(ExpertKey{e.layer, e.expert}, std::move(expert));
  }
  out.took = clock_.Now() - begin;
  return out;
}

void ExpertFetcher::Run() {
  // Of this thread alone, as Linux has it. Without the right to it nothing is lost but time.
  (void)setpriority(PRIO_PROCESS, static_cast<id_t>(gettid()), kNice);
  for (;;) {
    std::optional<Job> job;
    {
      std::vector<SpareExperts> unused;
      MutexLock lock(mu_);
      while (!stop_ && !job_ && unused_.empty()) changed_.Wait(mu_);
      if (stop_) return;
      unused.swap(unused_);
      job.swap(job_);
      // The lock goes first, then what is unused.
    }
    if (!job) continue;
    absl::StatusOr<Fetched> fetched = Fetch(*job);
    MutexLock lock(mu_);
    if (job->number != number_) continue;
    fetched_ = std::move(fetched);
    done_.store(true, std::memory_order_release);
  }
}

}  // namespace switchyard
