// The prefill rank's end with its I/O: a thread that owns a SendEnd and its UCX workers.
#include <algorithm>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/mutex.h"
#include "common/status_macros.h"
#include "kvtransfer/io_loop.h"
#include "kvtransfer/kv_transfer.h"
#include "kvtransfer/send_end.h"
#include "kvtransfer/transport.h"

namespace switchyard {
namespace {

class Sender final : public KvSender {
 public:
  Sender(const KvSenderOptions& options, KvStorage* kv, const Clock* clock,
         TransportWorkers workers)
      : clock_(clock),
        workers_(std::move(workers)),
        end_(options, kv, clock,
             [this](const KvHelloAnswer& answer, const SendLane::Options& lane,
                    SendLane::OnSent on_sent, OnLaneError on_error) {
               return ConnectSendLane(workers_, answer, lane, std::move(on_sent),
                                      std::move(on_error));
             }) {
    hello_.layout_id = kv->layout().LayoutId();
    hello_.host_id = HostId();
    hello_.lanes = options.lanes;
    hello_.ucx_address = workers_.tcp->address();
  }

  absl::Status Start() {
    RETURN_IF_ERROR(workers_.tcp->SetAmHandler(
        kCreditAm, [this](auto header, auto) { end_.OnCredit(header); }));
    ASSIGN_OR_RETURN(loop_,
                     IoLoop::Start(workers_.tcp.get(), clock_,
                                   {.work = [this](absl::Time) { return Work(); },
                                    .wake_at = [this](absl::Time now) { return WakeAt(now); },
                                    .stop = [this] { end_.Shutdown(); }}));
    return absl::OkStatus();
  }

  KvHello MakeHello() const override { return hello_; }

  void Connect(const KvHelloAnswer& answer) override {
    // Lost in a full mailbox, it shows as an unknown peer at the first Begin.
    (void)loop_->Post([this, answer] { end_.AddPeer(answer); });
  }

  void Disconnect(uint64_t peer_token) override {
    (void)loop_->Post([this, peer_token] { end_.Disconnect(peer_token); });
  }

  void Prepare(const AttemptKey& key, int blocks_total,
               std::function<void(absl::StatusOr<KvSendResult>)> done) override {
    if (!loop_->Post([=, this] { end_.Prepare(key, blocks_total, done); })) done(Full());
  }

  void Begin(const AttemptKey& key, uint64_t peer_token, uint64_t session,
             std::vector<uint32_t> generations) override {
    PostFor(key, [=, this] { end_.Begin(key, peer_token, session, generations); });
  }

  void Push(const AttemptKey& key, int layer, int first_block,
            std::vector<BlockId> blocks) override {
    PostFor(key, [=, this] { end_.Push(key, layer, first_block, blocks); });
  }

  void Cancel(const AttemptKey& key) override {
    PostFor(key,
            [this, key] { end_.Fail(key, absl::CancelledError("the transfer was cancelled")); });
  }

 private:
  static absl::Status Full() {
    return absl::ResourceExhaustedError(
        absl::StrCat("KV sender: mailbox is full or closed, limit ", IoLoop::kMessagesMax));
  }

  // A message of a transfer that cannot be posted ends the transfer: it would never complete.
  void PostFor(const AttemptKey& key, IoLoop::Message message) {
    if (loop_->Post(std::move(message))) return;
    MutexLock lock(unposted_mu_);
    unposted_.insert(key);
  }

  bool Work() {
    FailUnposted();
    // Nothing is ever sent by posix, but closing its endpoints takes progress.
    if (workers_.posix != nullptr && workers_.posix->closing() > 0) workers_.posix->Progress();
    return end_.Work();
  }

  void FailUnposted() {
    std::set<AttemptKey> keys;
    {
      MutexLock lock(unposted_mu_);
      keys.swap(unposted_);
    }
    for (const AttemptKey& key : keys) end_.Fail(key, Full());
  }

  absl::Time WakeAt(absl::Time now) {
    // UCX wakes us for credits, completions and errors; the bound is for what it may forget.
    return end_.busy() ? std::min(end_.next_check(), now + absl::Milliseconds(100))
                       : end_.next_check();
  }

  const Clock* const clock_;
  TransportWorkers workers_;
  KvHello hello_;
  SendEnd end_;
  Mutex unposted_mu_;
  std::set<AttemptKey> unposted_ ABSL_GUARDED_BY(unposted_mu_);
  std::unique_ptr<IoLoop> loop_;  // last: its thread uses all of the above
};

}  // namespace

absl::StatusOr<std::unique_ptr<KvSender>> KvSender::Create(const KvSenderOptions& options,
                                                           KvStorage* kv, const Clock* clock) {
  if (options.stall <= absl::ZeroDuration()) {
    return absl::InvalidArgumentError(
        absl::StrCat("stall is ", absl::FormatDuration(options.stall), ", must be above 0"));
  }
  ASSIGN_OR_RETURN(TransportWorkers workers,
                   TransportWorkers::Create(options.lanes, options.net_devices));
  auto sender = std::make_unique<Sender>(options, kv, clock, std::move(workers));
  RETURN_IF_ERROR(sender->Start());
  return sender;
}

}  // namespace switchyard
