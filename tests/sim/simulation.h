// tests/sim/simulation.h: one run of a whole cluster from one seed, and what it promises:
//   - every token that a client gets is the next one of the undisturbed run;
//   - a request that has no error ends where the undisturbed run ends, also a replayed one;
//   - while nothing fails, no request has an error, no attempt fails but for want of room, and no
//     worker is given up;
//   - blocks: free + owned + leased + quarantined = total after every step, none is handed out
//     while a hand-off may still write it or a transfer may still read it;
//   - once nothing fails any more, every request ends, new ones succeed, and then nothing is left:
//     no block, attempt, hand-off or transfer.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "tests/sim/faults.h"
#include "tests/sim/world.h"

namespace switchyard::sim {

struct RunOptions {
  std::optional<std::vector<Fault>> faults;  // instead of the seed's own
  bool keep_log = false;
};

struct RunResult {
  std::string violation;  // empty: all promises were kept
  std::vector<Fault> faults;
  std::string log;
  uint64_t events = 0, tokens = 0, frames_spoilt = 0, stale_frames = 0, blocks_shared = 0;
  int requests = 0, completed = 0, retried = 0, failed = 0;
};

RunResult RunSeed(uint64_t seed, Shared* shared, const RunOptions& options = {});

// The fewest faults of `result` that still break a promise with this seed, and the log of that run.
RunResult Shrink(uint64_t seed, Shared* shared, const RunResult& result);

}  // namespace switchyard::sim
