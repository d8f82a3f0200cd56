// prefill/block_progress.h: which KV blocks of a prompt are final, layer by layer, as the engine
// writes rows. Pure bookkeeping; owned by the engine thread.
#pragma once

#include <vector>

#include "absl/status/statusor.h"
#include "common/ids.h"
#include "kvcache/layout.h"

namespace switchyard {

class BlockProgress {
 public:
  struct Range {
    int first_block = 0, blocks = 0;  // may be empty
  };

  // `tokens` >= 1: rows of the whole prompt.
  BlockProgress(int layers, int tokens, int block_tokens)
      : tokens_(tokens), block_tokens_(block_tokens), written_(layers, 0) {}

  // Rows [first_token, first_token + tokens) of `layer` are written. Returns the blocks that this
  // completes: full ones, and the last one with the prompt's end. Rows told again (a step that ran
  // twice wrote the same bits) complete nothing. kInternal for a gap or rows past the end.
  absl::StatusOr<Range> Add(int layer, int first_token, int tokens);

  int blocks_total() const { return (tokens_ + block_tokens_ - 1) / block_tokens_; }
  // Rows in use of the last block, [1, block_tokens].
  int tail_rows() const { return tokens_ - (blocks_total() - 1) * block_tokens_; }

 private:
  int BlocksDone(int written) const {
    return written == tokens_ ? blocks_total() : written / block_tokens_;
  }

  const int tokens_, block_tokens_;
  std::vector<int> written_;  // [layers] rows from 0
};

// Zeroes the rows from `used_rows` on of a block, so that nothing of its last owner leaves this
// rank and that equal prompts send equal bytes.
void ZeroTail(KvStorage& kv, int layer, BlockId block, int used_rows);

}  // namespace switchyard
