// The decode rank's end with its I/O: a thread that owns a ReceiveEnd and its UCX workers.
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/mutex.h"
#include "common/random_word.h"
#include "common/status_macros.h"
#include "kvtransfer/io_loop.h"
#include "kvtransfer/kv_transfer.h"
#include "kvtransfer/receive_end.h"
#include "kvtransfer/transport.h"

namespace switchyard {
namespace {

class Receiver final : public KvReceiver {
 public:
  Receiver(const KvReceiverOptions& options, KvStorage* kv, const Clock* clock,
           OnDropped on_dropped, TransportWorkers workers)
      : clock_(clock),
        workers_(std::move(workers)),
        end_(
            options, kv, clock,
            [this, options, kv](const KvHello& hello, KvHelloAnswer* answer, OnLaneError on_error) {
              return ConnectReceiveLane(workers_, hello, options, kv->layout().BlockBytes(), answer,
                                        std::move(on_error));
            },
            RandomWord, std::move(on_dropped)) {}

  absl::Status Start() {
    RETURN_IF_ERROR(workers_.tcp->SetAmHandler(
        kFrameAm, [this](auto header, auto payload) { end_.OnFrame(header, payload); }));
    ASSIGN_OR_RETURN(loop_,
                     IoLoop::Start(workers_.tcp.get(), clock_,
                                   {.work = [this](absl::Time now) { return Work(now); },
                                    .wake_at = [this](absl::Time now) { return WakeAt(now); },
                                    .stop = [this] { Stop(); }}));
    return absl::OkStatus();
  }

  void Hello(const KvHello& hello,
             std::function<void(absl::StatusOr<KvHelloAnswer>)> done) override {
    auto say = [this, hello, done] {
      // Nothing is ever sent by posix, but what a new endpoint over there says must be taken in.
      if (workers_.posix != nullptr) workers_.posix->Progress();
      done(end_.Hello(hello));
    };
    if (!loop_->Post(std::move(say))) done(Full());
  }

  void Open(uint64_t peer_token, const KvTarget& target,
            std::function<void(absl::StatusOr<uint64_t>)> done) override {
    if (!loop_->Post([=, this] { end_.Open(peer_token, target, done); })) done(Full());
  }

  void Commit(uint64_t peer_token, uint64_t session, uint64_t digest, absl::Duration wait,
              std::function<void(absl::StatusOr<KvTarget>)> done) override {
    if (!loop_->Post([=, this] { end_.Commit(peer_token, session, digest, wait, done); })) {
      done(Full());
    }
  }

  void Cancel(const AttemptKey& key) override {
    // A cancel that finds the mailbox full is made up for by the lease.
    (void)loop_->Post([this, key] { end_.Cancel(key); });
  }

  void Renew(uint64_t peer_token, std::vector<uint64_t> sessions,
             std::function<void(std::vector<uint64_t> lost)> done) override {
    // Overload loses no session by itself: the next renewal tells.
    if (!loop_->Post([=, this] { done(end_.Renew(peer_token, sessions)); })) done({});
  }

  KvReceiverStats stats() const override {
    MutexLock lock(stats_mu_);
    return published_;
  }

 private:
  static absl::Status Full() {
    return absl::ResourceExhaustedError(
        absl::StrCat("KV receiver: mailbox is full or closed, limit ", IoLoop::kMessagesMax));
  }

  bool Work(absl::Time now) {
    end_.Work();
    if (now >= next_publish_) Publish(now);
    return false;
  }

  void Publish(absl::Time now) {
    next_publish_ = now + absl::Milliseconds(1);
    MutexLock lock(stats_mu_);
    published_ = end_.stats();
  }

  absl::Time WakeAt(absl::Time now) {
    Publish(now);  // about to sleep: whoever looks meanwhile sees the latest
    return end_.next_check();
  }

  void Stop() {
    end_.Shutdown();
    Publish(clock_->Now());
  }

  const Clock* const clock_;
  TransportWorkers workers_;
  ReceiveEnd end_;
  absl::Time next_publish_ = absl::InfinitePast();
  mutable Mutex stats_mu_;
  KvReceiverStats published_ ABSL_GUARDED_BY(stats_mu_);
  std::unique_ptr<IoLoop> loop_;  // last: its thread uses all of the above
};

}  // namespace

absl::StatusOr<std::unique_ptr<KvReceiver>> KvReceiver::Create(const KvReceiverOptions& options,
                                                               KvStorage* kv, const Clock* clock,
                                                               OnDropped on_dropped) {
  if (options.peers_max < 1 || options.sessions_max < 1) {
    return absl::InvalidArgumentError(absl::StrCat("peers_max is ", options.peers_max,
                                                   ", sessions_max is ", options.sessions_max,
                                                   ", must be at least 1"));
  }
  ASSIGN_OR_RETURN(TransportWorkers workers,
                   TransportWorkers::Create(options.lanes, options.net_devices));
  auto receiver =
      std::make_unique<Receiver>(options, kv, clock, std::move(on_dropped), std::move(workers));
  RETURN_IF_ERROR(receiver->Start());
  return receiver;
}

}  // namespace switchyard
