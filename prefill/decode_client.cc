#include "prefill/decode_client.h"

#include <chrono>
#include <utility>

#include "absl/strings/str_cat.h"
#include "cluster/grpc_server.h"

namespace switchyard {
namespace {

namespace pb = handoff::v1;

constexpr absl::Duration kCallTimeout = absl::Seconds(5);
// How long the decode rank waits for blocks under way and for the router's half of the attempt.
constexpr absl::Duration kCommitWait = absl::Seconds(10);

pb::HelloRequest ToProto(const KvHello& hello) {
  pb::HelloRequest request;
  request.set_wire_version(hello.wire_version);
  request.set_numerics_id(hello.numerics_id);
  request.set_layout_id(hello.layout_id);
  request.set_peer_name(hello.peer_name);
  request.set_incarnation(hello.incarnation);
  for (const std::string& lane : hello.lanes) request.add_lanes(lane);
  request.set_ucx_address(hello.ucx_address);
  request.set_host_id(hello.host_id);
  return request;
}

KvHelloAnswer FromProto(const pb::HelloResponse& answer) {
  return {.wire_version = answer.wire_version(),
          .peer_token = answer.peer_token(),
          .incarnation = answer.incarnation(),
          .lane = answer.lane(),
          .ucx_address = answer.ucx_address(),
          .ring_ucx_address = answer.ring_ucx_address(),
          .ring_rkey = answer.ring_rkey(),
          .ring_address = answer.ring_address(),
          .ring_bytes = answer.ring_bytes()};
}

}  // namespace

DecodeClient::DecodeClient(const std::string& address, KvHello hello, KvSender* sender,
                           PostToLoop post)
    : address_(address),
      hello_(std::move(hello)),
      sender_(sender),
      post_(std::move(post)),
      stub_(pb::Handoff::NewStub(DialChannel(address))) {}

DecodeClient::~DecodeClient() {
  *alive_ = false;
  {
    MutexLock lock(mu_);
    closed_ = true;
    for (grpc::ClientContext* call : calls_) call->TryCancel();
    while (!calls_.empty()) idle_.Wait(mu_);
  }
  if (peer_token_ != 0) sender_->Disconnect(peer_token_);
}

template <typename Request, typename Response>
void DecodeClient::Call(void (Stub::*method)(grpc::ClientContext*, const Request*, Response*,
                                             std::function<void(grpc::Status)>),
                        Request request, absl::Duration timeout, Done<Response> done) {
  struct State {
    grpc::ClientContext context;
    Request request;
    Response response;
  };
  auto state = std::make_shared<State>();
  state->request = std::move(request);
  state->context.set_deadline(std::chrono::system_clock::now() +
                              absl::ToChronoMilliseconds(timeout));
  {
    MutexLock lock(mu_);
    calls_.insert(&state->context);
  }
  // The answer comes on a thread of gRPC's, which must not touch this object after the erase.
  (stub_->async()->*method)(
      &state->context, &state->request, &state->response,
      [this, state, post = post_, done = std::move(done)](const grpc::Status& status) {
        MutexLock lock(mu_);
        if (!closed_) {
          post([state, done, status, alive = alive_] {
            if (!*alive) return;
            if (!status.ok()) return done(FromGrpc(status));
            done(std::move(state->response));
          });
        }
        calls_.erase(&state->context);
        idle_.NotifyAll();
      });
}

void DecodeClient::Introduced(uint64_t incarnation, Done<uint64_t> done) {
  if (peer_token_ != 0) {
    if (incarnation == 0 || incarnation == incarnation_) return done(peer_token_);
    GiveUp(peer_token_);
  }
  waiting_.push_back({incarnation, std::move(done)});
  if (std::exchange(asking_, true)) return;
  Call<pb::HelloRequest, pb::HelloResponse>(&Stub::Hello, ToProto(hello_), kCallTimeout,
                                            [this](auto answer) { OnHello(std::move(answer)); });
}

void DecodeClient::OnHello(absl::StatusOr<pb::HelloResponse> answer) {
  asking_ = false;
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
    Call<pb::ReserveRequest, pb::ReserveResponse>(
        &Stub::Reserve, request, kCallTimeout, [=, this](absl::StatusOr<pb::ReserveResponse> r) {
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
  Call<pb::CommitRequest, pb::CommitResponse>(&Stub::Commit, std::move(request),
                                              2 * kCommitWait + kCallTimeout, std::move(done));
}

void DecodeClient::Cancel(uint64_t peer_token, const AttemptKey& key) {
  pb::CancelRequest request;
  request.set_peer_token(peer_token);
  request.set_request(key.request);
  request.set_attempt(key.attempt);
  Call<pb::CancelRequest, pb::CancelResponse>(&Stub::Cancel, std::move(request), kCallTimeout,
                                              [](auto) {});  // lost: the lease ends it
}

void DecodeClient::Renew(uint64_t peer_token, const std::vector<uint64_t>& sessions,
                         Done<pb::RenewResponse> done) {
  pb::RenewRequest request;
  request.set_peer_token(peer_token);
  request.mutable_sessions()->Add(sessions.begin(), sessions.end());
  Call<pb::RenewRequest, pb::RenewResponse>(&Stub::Renew, std::move(request), kCallTimeout,
                                            [=, this](auto response) {
                                              if (absl::IsUnavailable(response.status()))
                                                GiveUp(peer_token);
                                              done(std::move(response));
                                            });
}

}  // namespace switchyard
