// tests/sim/mutation.h: the deliberate bug that mutated sources (mutate.py) have now. Production
// sources know nothing of it.
#pragma once

namespace switchyard::sim {

// 0: none. One run at a time.
inline int& Mutation() {
  static int number = 0;
  return number;
}

}  // namespace switchyard::sim
