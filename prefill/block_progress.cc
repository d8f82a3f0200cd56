#include "prefill/block_progress.h"

#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"

namespace switchyard {

absl::StatusOr<BlockProgress::Range> BlockProgress::Add(int layer, int first_token, int tokens) {
  int& written = written_.at(layer);
  if (first_token < 0 || tokens < 0 || first_token > written || tokens > tokens_ - first_token) {
    return absl::InternalError(absl::StrCat("rows [", first_token, ", +", tokens, ") of layer ",
                                            layer, " after ", written, " of ", tokens_));
  }
  const int before = BlocksDone(written);
  written = std::max(written, first_token + tokens);
  return Range{.first_block = before, .blocks = BlocksDone(written) - before};
}

void ZeroTail(KvStorage& kv, int layer, BlockId block, int used_rows) {
  const KvLayout& layout = kv.layout();
  const KvAddressing a = layout.Addressing();
  if (used_rows >= layout.block_tokens) return;
  const size_t element = SizeOf(layout.dtype), unused = layout.block_tokens - used_rows;
  std::byte* base = kv.Block(layer, block.value());
  const auto zero = [&](size_t offset, size_t row) {  // [bt][row] at `offset`, in elements
    std::memset(base + (offset + used_rows * row) * element, 0, unused * row * element);
  };
  for (int g = 0; g < layout.kv_heads; ++g) {
    zero(a.k_offset + g * a.k_head_stride, a.k_token_stride);
    if (layout.kind == KvLayout::Kind::kMla) continue;  // the values lie inside the keys
    zero(a.v_offset + g * a.v_head_stride, a.v_token_stride);
  }
}

}  // namespace switchyard
