#include "tests/sim/faults.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace switchyard::sim {

std::string Describe(const Fault& f) {
  const char* const names[] = {"crash", "hang",      "slow engine", "stuck engine", "clock jump",
                               "drain", "partition", "slow link",   "bad wire"};
  return absl::StrCat("at ", absl::FormatDuration(f.at), " for ", absl::FormatDuration(f.lasts),
                      ": ", names[static_cast<int>(f.kind)], " of node ", f.node,
                      f.kind < Fault::Kind::kPartition
                          ? ""
                          : absl::StrCat(f.both ? " and node " : " to node ", f.peer));
}

std::vector<Fault> DrawFaults(int prefill, int workers, Random* random) {
  std::vector<Fault> faults;
  const int count = random->Int(0, 6);
  for (int i = 0; i < count; ++i) {
    Fault f;
    // A crash and a bad wire are the commonest; the router itself fails rarely.
    constexpr Fault::Kind kMix[] = {
        Fault::Kind::kCrash,    Fault::Kind::kCrash,     Fault::Kind::kHang,
        Fault::Kind::kSlow,     Fault::Kind::kStuck,     Fault::Kind::kClockJump,
        Fault::Kind::kDrain,    Fault::Kind::kPartition, Fault::Kind::kPartition,
        Fault::Kind::kSlowLink, Fault::Kind::kBadWire,   Fault::Kind::kBadWire,
        Fault::Kind::kBadWire,
    };
    f.kind = kMix[random->Next() % std::size(kMix)];
    const bool process = f.kind == Fault::Kind::kCrash || f.kind == Fault::Kind::kHang ||
                         f.kind == Fault::Kind::kClockJump;
    f.node = process && random->Chance(0.1) ? 0 : random->Int(1, workers);
    f.peer = random->Int(0, workers);
    if (f.peer == f.node) f.peer = 0;
    if (prefill > 0 && (f.kind == Fault::Kind::kBadWire || random->Chance(0.3))) {
      f.node = random->Int(1, prefill);
      f.peer = random->Int(prefill + 1, workers);
    }
    f.both = f.kind != Fault::Kind::kPartition || random->Chance(0.5);
    // Half of them early, when everybody has work.
    f.at = random->Between(absl::ZeroDuration(),
                           random->Chance(0.5) ? absl::Milliseconds(300) : absl::Seconds(4));
    f.lasts = random->Chance(0.5)
                  ? random->Between(absl::Milliseconds(1), absl::Milliseconds(400))
                  : random->Between(absl::Milliseconds(400), kFaultsEnd - absl::Seconds(4));
    faults.push_back(f);
  }
  return faults;
}

}  // namespace switchyard::sim
