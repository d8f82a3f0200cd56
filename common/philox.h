// common/philox.h: Philox4x32-10, the counter-based generator of Salmon et al., "Parallel Random
// Numbers: As Easy as 1, 2, 3" (SC'11), section 4.3. A pure function of (key, counter): no state,
// so a replayed token draws the same number.
#pragma once

#include <array>
#include <cstdint>

namespace switchyard {

inline std::array<uint32_t, 4> Philox4x32(uint64_t key, std::array<uint32_t, 4> c) {
  uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{0xD2511F53u} * c[0], p1 = uint64_t{0xCD9E8D57u} * c[2];
    c = {static_cast<uint32_t>(p1 >> 32) ^ c[1] ^ k0, static_cast<uint32_t>(p1),
         static_cast<uint32_t>(p0 >> 32) ^ c[3] ^ k1, static_cast<uint32_t>(p0)};
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return c;
}

// The uniform number in [0, 1) of 53 bits that belongs to (seed, position, sample).
inline double PhiloxUniform(uint64_t seed, uint64_t position, uint32_t sample) {
  const auto r = Philox4x32(
      seed, {static_cast<uint32_t>(position), static_cast<uint32_t>(position >> 32), sample, 0});
  const uint64_t bits = (uint64_t{r[0]} << 21) ^ (r[1] >> 11);
  return static_cast<double>(bits) * 0x1.0p-53;
}

}  // namespace switchyard
