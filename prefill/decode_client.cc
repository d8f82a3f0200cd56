#include "prefill/decode_client.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "kvtransfer/hello_proto.h"

namespace switchyard {
namespace {

namespace pb = handoff::v1;

constexpr absl::Duration kCallTimeout = absl::Seconds(5);
// How long the decode rank waits for blocks under way and for the router's half of the attempt.
constexpr absl::Duration kCommitWait = absl::Seconds(10);

}  // namespace

DecodeClient::DecodeClient(std::string address, KvHello hello, KvSender* sender,
                           std::unique_ptr<HandoffChannel> channel,
                           std::function<void(std::function<void()>)> post)
    : address_(std::move(address)),
      hello_(std::move(hello)),
      sender_(sender),
      post_(std::move(post)),
      channel_(std::move(channel)) {}

DecodeClient::~DecodeClient() {
  channel_.reset();
  if (peer_token_ != 0) sender_->Disconnect(peer_token_);
}

void DecodeClient::Introduced(uint64_t incarnation, Done<uint64_t> done) {
  if (peer_token_ != 0) {
    if (incarnation == 0 || incarnation == incarnation_) return done(peer_token_);
    GiveUp(peer_token_);
  }
  waiting_.push_back({incarnation, std::move(done)});
  if (std::exchange(asking_, true)) return;
  channel_->Hello(ToProto(hello_), kCallTimeout,
                  [this](auto answer) { OnHello(std::move(answer)); });
}

void DecodeClient::OnHello(absl::StatusOr<pb::HelloResponse> answer) {
  asking_ = false;
  if (answer.ok() && answer->wire_version() != kHandoffWireVersion) {
    answer = absl::FailedPreconditionError(
        absl::StrCat("decode rank ", address_, ": wire_version is ", answer->wire_version(),
                     ", this rank speaks ", kHandoffWireVersion));
  }
  if (answer.ok() && answer->peer_token() == 0) {
    answer = absl::InternalError(absl::StrCat(address_, ": Hello answered peer_token 0"));
  }
  if (answer.ok()) {
    peer_token_ = answer->peer_token();
    incarnation_ = answer->incarnation();
    sender_->Connect(FromProto(*answer));
  }
  for (Waiter& waiter : std::exchange(waiting_, {})) {
    if (!answer.ok()) {
      waiter.done(answer.status());
    } else if (waiter.incarnation != 0 && waiter.incarnation != incarnation_) {
      waiter.done(absl::UnavailableError(absl::StrCat("decode rank ", address_, ": incarnation ",
                                                      waiter.incarnation, " wanted, ", incarnation_,
                                                      " is there")));
    } else {
      waiter.done(peer_token_);
    }
  }
}

void DecodeClient::GiveUp(uint64_t peer_token) {
  if (peer_token == 0 || peer_token != peer_token_) return;
  peer_token_ = 0;
  sender_->Disconnect(peer_token);
}

void DecodeClient::Reserve(const AttemptKey& key, int tokens, uint64_t incarnation,
                           Done<Reservation> done) {
  pb::ReserveRequest request;
  request.set_request(key.request);
  request.set_attempt(key.attempt);
  request.set_tokens(tokens);
  TryReserve(std::move(request), incarnation, /*again=*/false, std::move(done));
}

void DecodeClient::TryReserve(pb::ReserveRequest request, uint64_t incarnation, bool again,
                              Done<Reservation> done) {
  Introduced(incarnation, [=, this](absl::StatusOr<uint64_t> token) mutable {
    // On the loop, but perhaps within the caller's call: errors must come later.
    if (!token.ok()) return post_([done, status = token.status()] { done(status); });
    request.set_peer_token(*token);
    channel_->Reserve(request, kCallTimeout, [=, this](absl::StatusOr<pb::ReserveResponse> r) {
      if (absl::IsUnauthenticated(r.status()) || absl::IsUnavailable(r.status())) {
        GiveUp(*token);
      }
      if (absl::IsUnauthenticated(r.status()) && !again) {
        return TryReserve(request, incarnation, /*again=*/true, done);
      }
      if (!r.ok()) return done(r.status());
      done(Reservation{*token,
                       r->session(),
                       {r->generations().begin(), r->generations().end()},
                       absl::Milliseconds(r->lease_ms())});
    });
  });
}

void DecodeClient::Commit(const CommitCall& call, Done<pb::CommitResponse> done) {
  pb::CommitRequest request;
  request.set_peer_token(call.peer_token);
  request.set_session(call.session);
  request.set_request(call.key.request);
  request.set_attempt(call.key.attempt);
  request.set_first_token(call.first_token);
  request.set_first_index(call.first_index);
  request.set_digest(call.digest);
  request.set_wait_ms(absl::ToInt64Milliseconds(kCommitWait));
  channel_->Commit(std::move(request), 2 * kCommitWait + kCallTimeout, std::move(done));
}

void DecodeClient::Cancel(uint64_t peer_token, const AttemptKey& key) {
  pb::CancelRequest request;
  request.set_peer_token(peer_token);
  request.set_request(key.request);
  request.set_attempt(key.attempt);
  channel_->Cancel(std::move(request), kCallTimeout, [](auto) {});  // lost: the lease ends it
}

void DecodeClient::Renew(uint64_t peer_token, const std::vector<uint64_t>& sessions,
                         Done<pb::RenewResponse> done) {
  pb::RenewRequest request;
  request.set_peer_token(peer_token);
  request.mutable_sessions()->Add(sessions.begin(), sessions.end());
  channel_->Renew(std::move(request), kCallTimeout, [=, this](auto response) {
    if (absl::IsUnavailable(response.status())) GiveUp(peer_token);
    done(std::move(response));
  });
}

}  // namespace switchyard
