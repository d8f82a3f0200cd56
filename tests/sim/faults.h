// tests/sim/faults.h: what goes wrong in a run, as data: drawn from the seed, and shortened when a
// failure is shrunk.
#pragma once

#include <string>
#include <vector>

#include "absl/time/time.h"
#include "tests/sim/sim_loop.h"

namespace switchyard::sim {

struct Fault {
  enum class Kind {
    kCrash,      // the process dies; a new one starts after `lasts`
    kHang,       // it stands still for `lasts`, then goes on
    kSlow,       // its engine takes 50 times as long
    kStuck,      // its engine stands still; the rest of the process lives
    kClockJump,  // its clock leaps forward by `lasts`
    kDrain,      // it is asked to leave: it drains for `lasts`, exits, and is started again
    kPartition,  // nothing goes from node to peer (and back, if `both`)
    kSlowLink,   // 50 times the delay between the two
    kBadWire,    // KV frames between the two are lost, doubled, delayed, flipped
  };
  Kind kind;
  int node = 0, peer = 0;  // 0: the router
  bool both = false;
  absl::Duration at, lasts;
};

std::string Describe(const Fault& fault);

// Node 0 is the router, then come the workers, first the prefill ones. All are over by kFaultsEnd.
inline constexpr absl::Duration kFaultsEnd = absl::Seconds(8);
std::vector<Fault> DrawFaults(int prefill, int workers, Random* random);

}  // namespace switchyard::sim
