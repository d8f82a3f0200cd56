// prefill/decode_client.h: the hand-off's calls (handoff.proto) to one decode rank. Introduces this
// rank when it must: before the first reservation, and again when the decode rank does not know it
// any more or has been started anew. All methods are called on the worker's control loop, never
// block, and answer on that loop, later, exactly once (never, after destruction).
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "kvtransfer/kv_transfer.h"
#include "prefill/handoff_channel.h"

namespace switchyard {

class DecodeClient {
 public:
  template <typename T>
  using Done = HandoffChannel::Done<T>;

  struct Reservation {
    uint64_t peer_token = 0, session = 0;
    std::vector<uint32_t> generations;
    absl::Duration lease;
  };
  struct CommitCall {
    uint64_t peer_token = 0, session = 0;
    AttemptKey key;
    TokenId first_token = 0;
    int first_index = 0;
    uint64_t digest = 0;
  };

  // `hello` is said to the rank; `sender` is told of its answers and must outlive this. `post` runs
  // a closure on the control loop.
  DecodeClient(std::string address, KvHello hello, KvSender* sender,
               std::unique_ptr<HandoffChannel> channel,
               std::function<void(std::function<void()>)> post);
  ~DecodeClient();
  const std::string& address() const { return address_; }

  // `incarnation`: of the decode process that is meant; 0: any. kUnavailable if it is another one.
  void Reserve(const AttemptKey& key, int tokens, uint64_t incarnation, Done<Reservation> done);
  void Commit(const CommitCall& call, Done<handoff::v1::CommitResponse> done);
  void Cancel(uint64_t peer_token, const AttemptKey& key);
  void Renew(uint64_t peer_token, const std::vector<uint64_t>& sessions,
             Done<handoff::v1::RenewResponse> done);
  // The introduction is void: the rank is gone, or its lane is. The next Reserve makes a new one.
  void GiveUp(uint64_t peer_token);

 private:
  void Introduced(uint64_t incarnation, Done<uint64_t> done);  // -> peer_token
  void OnHello(absl::StatusOr<handoff::v1::HelloResponse> answer);
  void TryReserve(handoff::v1::ReserveRequest request, uint64_t incarnation, bool again,
                  Done<Reservation> done);

  struct Waiter {
    uint64_t incarnation;
    Done<uint64_t> done;
  };

  const std::string address_;
  const KvHello hello_;
  KvSender* const sender_;
  const std::function<void(std::function<void()>)> post_;
  std::unique_ptr<HandoffChannel> channel_;
  uint64_t peer_token_ = 0;  // 0: not introduced
  uint64_t incarnation_ = 0;
  bool asking_ = false;
  std::vector<Waiter> waiting_;
};

}  // namespace switchyard
