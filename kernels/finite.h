// kernels/finite.h: what logits must be before a token is chosen from them.
#pragma once

#include <bit>
#include <cstdint>
#include <span>

namespace switchyard {

// Whether no value is infinite or no number.
inline bool AllFinite(std::span<const float> values) {
  uint32_t bad = 0;
  for (const float v : values) bad |= (std::bit_cast<uint32_t>(v) & 0x7f800000u) == 0x7f800000u;
  return bad == 0;
}

}  // namespace switchyard
