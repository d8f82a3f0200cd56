// bench/kv_bench.h: how fast KV blocks get from a prefill process into a decode process's paged
// cache, and how near that is to what the machine can do. All ways (kv_ways.h) take turns in one
// run, since on a shared machine everything moves; a ratio is the median over the turns of the
// ratio within one.
#pragma once

#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace switchyard {

struct BenchKvOptions {
  std::vector<int> block_bytes = {2560, 32768};  // of one layer; multiples of 64
  int layers = 16;
  int mib = 128;  // moved each time
  int turns = 7;
  std::function<void(const std::string&)> progress;  // a line per result; may be empty
};

// Forks: to be called before the process has threads. {"mib", "layers", "turns", "sizes":
// [{"block_bytes", "gb_per_s": {way or copy: median}, "ratios": {name: {"median", "min", "max"}}}]}
absl::StatusOr<nlohmann::ordered_json> RunBenchKv(const BenchKvOptions& options);

}  // namespace switchyard
