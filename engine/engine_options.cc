#include "engine/engine_options.h"

#include <unistd.h>

#include <algorithm>
#include <limits>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"

namespace switchyard {
namespace {

constexpr size_t kLogitBytesMax = size_t{64} << 20;  // of one step: bounds prompt log-probabilities
constexpr size_t kDefaultKvBytesMax = size_t{1} << 30;
constexpr int kDefaultBatchTokens = 2048;  // ModelOptions::max_batch_tokens = 0

}  // namespace

absl::Status CheckEngineOption(absl::string_view name, int64_t value, int64_t low, int64_t high) {
  if (value >= low && value <= high) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(name, " is ", value, "; allowed are ", low, " to ", high));
}

absl::StatusOr<EngineOptions> ResolveOptions(const Model& model, EngineOptions o) {
  const ModelOptions& m = model.options();
  const int positions =
      m.max_model_len > 0 ? m.max_model_len : model.config().max_position_embeddings;
  const int rows = m.max_batch_tokens > 0 ? m.max_batch_tokens : kDefaultBatchTokens;
  const bool length_given = o.max_model_len != 0;
  if (!length_given) o.max_model_len = positions;
  RETURN_IF_ERROR(CheckEngineOption("max_model_len", o.max_model_len, 2, positions));
  RETURN_IF_ERROR(CheckEngineOption("max_num_batched_tokens", o.max_num_batched_tokens, 1, rows));
  RETURN_IF_ERROR(CheckEngineOption("prefill_chunk", o.prefill_chunk, 1, 1 << 20));
  RETURN_IF_ERROR(CheckEngineOption("block_size", o.block_size, 1, 1024));
  RETURN_IF_ERROR(CheckEngineOption("max_num_seqs", o.max_num_seqs, 1, 1 << 16));
  RETURN_IF_ERROR(CheckEngineOption("max_waiting", o.max_waiting, 1, 1 << 20));
  RETURN_IF_ERROR(
      CheckEngineOption("kv_blocks", o.kv_blocks, 0, std::numeric_limits<int32_t>::max()));
  const KvLayout layout = model.config().KvLayoutFor(m.dtype, o.block_size);
  if (o.kv_blocks == 0) {
    const int64_t wanted = int64_t{o.max_num_seqs} * layout.BlocksFor(o.max_model_len);
    const auto most = static_cast<int64_t>(kDefaultKvBytesMax / layout.BlockBytesAllLayers());
    o.kv_blocks = static_cast<int>(std::max<int64_t>(1, std::min(wanted, most)));
  }
  const uint64_t memory = static_cast<uint64_t>(sysconf(_SC_PHYS_PAGES)) * sysconf(_SC_PAGESIZE);
  if (static_cast<uint64_t>(o.kv_blocks) > memory / layout.BlockBytesAllLayers()) {
    return absl::InvalidArgumentError(
        absl::StrCat("kv_blocks is ", o.kv_blocks, " of ", layout.BlockBytesAllLayers(),
                     " bytes each; this machine has ", memory, " bytes of memory"));
  }
  // Nobody is promised a length that the pool cannot hold; who asks for one by name is told at each
  // request that does not fit.
  const int64_t room = int64_t{o.kv_blocks} * o.block_size;
  if (room < 2) {
    return absl::InvalidArgumentError(absl::StrCat(
        "kv_blocks is ", o.kv_blocks, " of ", o.block_size, " token; room for 2 tokens is needed"));
  }
  if (!length_given) o.max_model_len = static_cast<int>(std::min<int64_t>(positions, room));
  return o;
}

SchedulerOptions SchedulerOptionsFor(const EngineOptions& o, const Model& model) {
  const size_t row_bytes = static_cast<size_t>(model.config().vocab_size) * sizeof(float);
  return {.block_tokens = o.block_size,
          .max_num_batched_tokens = o.max_num_batched_tokens,
          .prefill_chunk = o.prefill_chunk,
          .max_num_seqs = o.max_num_seqs,
          .max_waiting = o.max_waiting,
          .max_model_len = o.max_model_len,
          .max_logit_rows = static_cast<int>(std::min<size_t>(
              static_cast<size_t>(o.max_num_batched_tokens), kLogitBytesMax / row_bytes)),
          .prefix_caching = o.prefix_caching,
          .prefix_seed = o.prefix_seed,
          .by_class = model.options().expands_prompts()};
}

}  // namespace switchyard
