#include "prefill/handoff_client.h"

#include <utility>

namespace switchyard {
namespace {
template <typename... Ts>
struct Overloaded : Ts... {
  using Ts::operator()...;
};
template <typename... Ts>
Overloaded(Ts...) -> Overloaded<Ts...>;
}  // namespace

HandoffClient::Effects HandoffClient::Step(const Event& event, absl::Time now) {
  Effects out;
  std::visit(
      Overloaded{
          [&](const EngineStarted&) {
            if (transfer_ == Transfer::kNone) transfer_ = Transfer::kOpen;
            if (phase_ != Phase::kWaiting) return;
            phase_ = Phase::kReserving;
            out.push_back(Effect::kReserve);
          },
          [&](const Reserved& e) {
            if (phase_ == Phase::kEnded) out.push_back(Effect::kCancelRemote);
            if (phase_ != Phase::kReserving) return;
            phase_ = Phase::kSending;
            lease_ = e.lease;
            renew_at_ = now + lease_ / 3;
            lease_ends_ = now + lease_;
            out.push_back(Effect::kBegin);
          },
          [&](const TokenSampled& e) {
            if (phase_ == Phase::kEnded || token_known_) return;
            token_known_ = true;
            out.push_back(Effect::kSendToken);
            if (e.finishes) {
              End(absl::OkStatus(), /*tell_router=*/false, &out);
            } else {
              MaybeCommit(&out);
            }
          },
          [&](const KvSent&) {
            kv_sent_ = true;
            TransferOver(&out);
            MaybeCommit(&out);
          },
          [&](const Committed&) {
            if (phase_ != Phase::kCommitting) return;
            phase_ = Phase::kEnded;
            out.push_back(Effect::kSendHandedOff);
            out.push_back(Effect::kFree);
            freed_ = true;
          },
          [&](const Renewed&) {
            if (phase_ != Phase::kSending && phase_ != Phase::kCommitting) return;
            lease_ends_ = now + lease_;
          },
          [&](const LocalFreed&) {
            if (phase_ == Phase::kEnded) freed_ = true;
          },
          [&](const Failed& e) {
            if (e.transfer_over) transfer_ = Transfer::kOver;
            End(e.why, /*tell_router=*/true, &out);
            if (e.transfer_over) TransferOver(&out);
          },
          [&](const Aborted&) {
            End(absl::CancelledError("aborted"), /*tell_router=*/false, &out);
          },
          [&](const Tick&) {
            if (phase_ == Phase::kEnded) return;
            if (now >= deadline_) {
              End(absl::DeadlineExceededError("the attempt's deadline passed on the prefill rank"),
                  /*tell_router=*/true, &out);
            } else if (now >= lease_ends_) {
              End(absl::UnavailableError("the decode rank did not renew the lease in time"),
                  /*tell_router=*/true, &out);
            } else if (now >= renew_at_) {
              renew_at_ = now + lease_ / 3;
              out.push_back(Effect::kRenew);
            }
          },
      },
      event);
  return out;
}

void HandoffClient::MaybeCommit(Effects* out) {
  if (phase_ != Phase::kSending || !kv_sent_ || !token_known_) return;
  phase_ = Phase::kCommitting;
  out->push_back(Effect::kCommit);
}

void HandoffClient::TransferOver(Effects* out) {
  transfer_ = Transfer::kOver;
  if (phase_ != Phase::kEnded || freed_) return;
  freed_ = true;
  out->push_back(Effect::kFree);
}

void HandoffClient::End(absl::Status why, bool tell_router, Effects* out) {
  if (phase_ == Phase::kEnded) return;
  const bool reserved = phase_ != Phase::kWaiting;
  phase_ = Phase::kEnded;
  error_ = std::move(why);
  if (tell_router) out->push_back(Effect::kSendError);
  if (reserved) out->push_back(Effect::kCancelRemote);
  if (transfer_ == Transfer::kOver) {
    freed_ = true;
    out->push_back(Effect::kFree);
  } else {
    out->push_back(Effect::kStopLocal);
  }
}

}  // namespace switchyard
