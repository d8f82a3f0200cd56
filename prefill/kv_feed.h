// prefill/kv_feed.h: the engine thread's half of the transfers: hands each block to the sender as
// soon as it is final, and knows which attempts have a transfer. Owned by the engine thread.
#pragma once

#include <functional>
#include <map>

#include "engine/engine.h"
#include "kvtransfer/kv_transfer.h"
#include "prefill/block_progress.h"

namespace switchyard {

class KvFeed {
 public:
  struct Callbacks {
    std::function<void(const AttemptKey&)> started;               // on the engine thread
    std::function<void(const AttemptKey&, absl::Status)> failed;  // on the engine thread
    // On the sender's thread, once for each `started`: the blocks are free of it. A failure may
    // come before `started`.
    std::function<void(const AttemptKey&, absl::StatusOr<KvSendResult>)> sent;
  };
  // Both must outlive the feed.
  KvFeed(KvStorage* kv, KvSender* sender, Callbacks callbacks)
      : kv_(*kv), sender_(*sender), callbacks_(std::move(callbacks)) {}

  // For Engine::SetKvProgress.
  void OnProgress(const KvProgress& progress);
  // Ends the attempt's transfer. False if there is none; else `sent` follows, and the attempt must
  // stay in the engine until then: its blocks may not change hands under a transfer.
  bool Stop(const AttemptKey& key);
  // After `sent`.
  void Forget(const AttemptKey& key) { transfers_.erase(key); }

 private:
  struct Transfer {
    Transfer(int layers, int tokens, int block_tokens) : progress(layers, tokens, block_tokens) {}
    BlockProgress progress;
    bool stopped = false;
  };
  KvStorage& kv_;
  KvSender& sender_;
  const Callbacks callbacks_;
  std::map<AttemptKey, Transfer> transfers_;
};

}  // namespace switchyard
