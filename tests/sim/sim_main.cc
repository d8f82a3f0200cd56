// Runs seeds of the simulator. usage: sim FIRST_SEED COUNT, or: sim SEED (prints its event log).
// Exit code 1 if a promise is broken; the failing seed is shrunk and its event log printed.
#include <chrono>
#include <cstdio>

#include "absl/strings/numbers.h"
#include "tests/sim/simulation.h"

namespace switchyard::sim {
namespace {

void Print(uint64_t seed, const RunResult& run) {
  std::printf("%s\nseed %llu: %s; faults:\n", run.log.c_str(),
              static_cast<unsigned long long>(seed),
              run.violation.empty() ? "all promises kept" : run.violation.c_str());
  for (const Fault& f : run.faults) std::printf("  %s\n", Describe(f).c_str());
}

int Main(uint64_t first, uint64_t count) {
  Shared shared;
  if (count == 0) {
    const RunResult run = RunSeed(first, &shared, {.faults = std::nullopt, .keep_log = true});
    Print(first, run);
    return run.violation.empty() ? 0 : 1;
  }
  RunResult sum;
  const auto start = std::chrono::steady_clock::now();
  for (uint64_t seed = first; seed < first + count; ++seed) {
    const RunResult run = RunSeed(seed, &shared);
    if (!run.violation.empty()) {
      Print(seed, Shrink(seed, &shared, run));
      std::printf("broken after %llu seeds\n", static_cast<unsigned long long>(seed - first + 1));
      return 1;
    }
    sum.events += run.events;
    sum.tokens += run.tokens;
    sum.frames_spoilt += run.frames_spoilt;
    sum.stale_frames += run.stale_frames;
    sum.blocks_shared += run.blocks_shared;
    sum.requests += run.requests;
    sum.completed += run.completed;
    sum.retried += run.retried;
    sum.failed += run.failed;
  }
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  std::printf(
      "%llu seeds in %.1f s (%.0f/s): %llu events, %d requests, %d completed, %d failed, "
      "%d retried, %llu tokens, %llu frames lost, doubled or flipped, %llu stale ones refused, "
      "%llu blocks not sent because they were there; "
      "all promises kept\n",
      static_cast<unsigned long long>(count), seconds, static_cast<double>(count) / seconds,
      static_cast<unsigned long long>(sum.events), sum.requests, sum.completed, sum.failed,
      sum.retried, static_cast<unsigned long long>(sum.tokens),
      static_cast<unsigned long long>(sum.frames_spoilt),
      static_cast<unsigned long long>(sum.stale_frames),
      static_cast<unsigned long long>(sum.blocks_shared));
  return 0;
}

}  // namespace
}  // namespace switchyard::sim

int main(int argc, char** argv) {
  uint64_t first = 0, count = 0;
  if (argc < 2 || argc > 3 || !absl::SimpleAtoi(argv[1], &first) ||
      (argc == 3 && !absl::SimpleAtoi(argv[2], &count))) {
    std::fprintf(stderr, "usage: %s FIRST_SEED COUNT | SEED\n", argv[0]);
    return 2;
  }
  return switchyard::sim::Main(first, count);
}
