#include "bench/worker_backend.h"

#include <unordered_map>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "cluster/worker_client.h"
#include "common/mutex.h"

namespace switchyard {
namespace {

namespace pb = cluster::v1;

class WorkerBackend final : public LoadBackend {
 public:
  WorkerBackend(const BackendOptions& options, const Clock* clock)
      : address_(options.address), clock_(clock), client_(address_, "bench", Callbacks()) {}
  const char* name() const override { return "switchyard-worker"; }

  absl::StatusOr<BackendModel> AwaitReady(absl::Duration limit) override {
    if (!registered_.WaitForNotificationWithTimeout(limit)) {
      return absl::UnavailableError(absl::StrCat("the worker at ", address_, " does not answer"));
    }
    return model_;
  }

  void Start(LoadRequest request, Done done) override {
    Open open;
    open.intended = request.start + request.intended;
    open.done = std::move(done);
    open.record.prompt_tokens = static_cast<int>(request.item.prompt_ids.size());
    open.record.cut = request.item.cut;
    open.record.intended = request.intended;
    open.record.sent_late = clock_->Now() - open.intended;
    pb::ToWorker message;
    pb::Submit& s = *message.mutable_submit();
    {
      MutexLock lock(mu_);
      ToProto(AttemptKey{absl::StrCat(next_++), 1}, s.mutable_id());
      open_.emplace(s.id().request(), std::move(open));
    }
    const std::string id = s.id().request();
    s.mutable_prompt_ids()->Add(request.item.prompt_ids.begin(), request.item.prompt_ids.end());
    s.set_max_tokens(request.item.output_len);
    s.set_ignore_eos(true);
    s.set_prompt_logprobs(-1);
    s.mutable_sampling()->set_logprobs(-1);
    if (!client_.Send(stream_, std::move(message))) End(id, "the worker takes no messages");
  }
  void CancelAll() override {
    MutexLock lock(mu_);
    for (auto& [id, open] : open_) {
      open.record.dropped = true;
      open.done(std::move(open.record));
    }
    open_.clear();
  }

 private:
  struct Open {
    absl::Time intended, last;
    RequestRecord record;
    Done done;
  };

  WorkerClientCallbacks Callbacks() {
    return {.registered =
                [this](StreamId stream, const pb::Registration& r) {
                  if (registered_.HasBeenNotified()) return;
                  stream_ = stream;
                  model_ = {"worker", r.vocab_size(), r.max_model_len()};
                  registered_.Notify();
                },
            .events =
                [this](StreamId, const std::shared_ptr<const pb::StepEvents>& events) {
                  const absl::Time now = clock_->Now();
                  for (const pb::AttemptEvent& e : events->events()) OnEvent(e, now);
                },
            .heartbeat = [](StreamId, const pb::Heartbeat&) {},
            .lost =
                [this](StreamId, const absl::Status& why) {
                  MutexLock lock(mu_);
                  for (auto& [id, open] : open_) {
                    open.record.error = std::string(why.message());
                    open.done(std::move(open.record));
                  }
                  open_.clear();
                }};
  }
  void OnEvent(const pb::AttemptEvent& e, absl::Time now) {
    {
      MutexLock lock(mu_);
      const auto it = open_.find(e.id().request());
      if (it == open_.end()) return;
      Open& o = it->second;
      if (o.record.output_tokens++ == 0) {
        o.record.ttft = now - o.intended;
      } else {
        o.record.itls.push_back(now - o.last);
      }
      o.last = now;
      if (e.finish() == pb::FINISH_NONE) return;
    }
    End(e.id().request(), e.finish() == pb::FINISH_ERROR ? e.error() : "");
  }
  void End(const std::string& id, const std::string& error) {
    Open open;
    {
      MutexLock lock(mu_);
      const auto it = open_.find(id);
      if (it == open_.end()) return;
      open = std::move(it->second);
      open_.erase(it);
    }
    open.record.e2e = open.last - open.intended;
    open.record.error = error;
    open.done(std::move(open.record));
  }

  const std::string address_;
  const Clock* const clock_;
  absl::Notification registered_;
  StreamId stream_;     // before the notification
  BackendModel model_;  // the same
  Mutex mu_;
  uint64_t next_ ABSL_GUARDED_BY(mu_) = 0;
  std::unordered_map<std::string, Open> open_ ABSL_GUARDED_BY(mu_);
  WorkerClient client_;  // last: its thread uses the rest
};

}  // namespace

std::unique_ptr<LoadBackend> MakeWorkerBackend(const BackendOptions& options, const Clock* clock) {
  return std::make_unique<WorkerBackend>(options, clock);
}

}  // namespace switchyard
