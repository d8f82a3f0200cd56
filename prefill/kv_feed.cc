#include "prefill/kv_feed.h"

namespace switchyard {

void KvFeed::OnProgress(const KvProgress& p) {
  const KvLayout& layout = kv_.layout();
  auto it = transfers_.find(p.key);
  if (it == transfers_.end()) {
    it = transfers_.try_emplace(p.key, layout.layers, p.prompt_tokens, layout.block_tokens).first;
    // In this order: what follows from `started` may be a Begin, which must find the transfer.
    sender_.Prepare(p.key, it->second.progress.blocks_total(),
                    [this, key = p.key](auto result) { callbacks_.sent(key, std::move(result)); });
    callbacks_.started(p.key);
  }
  if (it->second.stopped) return;
  BlockProgress& progress = it->second.progress;
  const auto range = progress.Add(p.layer, p.first_token, p.tokens);
  if (!range.ok()) return callbacks_.failed(p.key, range.status());
  if (range->blocks == 0) return;
  const auto blocks = p.blocks.subspan(range->first_block, range->blocks);
  if (range->first_block + range->blocks == progress.blocks_total()) {
    ZeroTail(kv_, p.layer, blocks.back(), progress.tail_rows());
  }
  sender_.Push(p.key, p.layer, range->first_block, {blocks.begin(), blocks.end()});
}

bool KvFeed::Stop(const AttemptKey& key) {
  const auto it = transfers_.find(key);
  if (it == transfers_.end()) return false;
  it->second.stopped = true;
  sender_.Cancel(key);
  return true;
}

}  // namespace switchyard
