// bench/engine_bench.h: tokens per second of one engine in this process: prefill alone, and decode
// at fixed batch sizes and context. The measure that other single-process engines report (pp, tg).
#pragma once

#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/engine.h"
#include "model/model.h"

namespace switchyard {

struct BenchEngineOptions {
  std::string model_dir;
  ModelOptions model;
  EngineOptions engine;
  std::vector<int> prefill_tokens = {512};
  int prefill_context = 0;  // tokens of the prompt before those, whose time does not count
  std::vector<int> decode_batches = {1, 4, 8, 16, 32};
  int decode_context = 512;  // tokens in the cache when decode starts
  int decode_steps = 32;
  int repeats = 3;                                   // the median is reported, with the spread
  std::function<void(const std::string&)> progress;  // a line per measurement; may be empty
};

// kInvalidArgument before anything is measured: a length or batch that the engine does not take.
// {"prefill": [{"tokens", "context", "tokens_per_second", "lowest", "highest", "share"}],
//  "decode": [{"batch", "context", …}], …}. "share" {median, lowest, highest}: the least time that
// the work's operations or bytes (engine/work_estimate.h) take at the ceilings that were measured
// beside each repetition, ÷ the time that it took; not for a device or the reference kernels.
absl::StatusOr<nlohmann::ordered_json> RunBenchEngine(const BenchEngineOptions& options);

}  // namespace switchyard
