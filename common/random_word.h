// common/random_word.h: names that nobody guesses and that do not repeat over processes: tokens,
// incarnations, seeds of generators.
#pragma once

#include <cstdint>
#include <random>

namespace switchyard {

// 64 bits from the system's source of entropy. Thread-safe.
inline uint64_t RandomWord() {
  std::random_device entropy;
  return uint64_t{entropy()} << 32 | entropy();
}

}  // namespace switchyard
