// common/checked_math.h: arithmetic on sizes that came from outside.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <optional>

namespace switchyard {

// The product of all factors, or nothing if it does not fit 64 bits. An empty list gives 1.
inline std::optional<uint64_t> CheckedProduct(std::initializer_list<uint64_t> factors) {
  uint64_t product = 1;
  for (uint64_t f : factors) {
    if (__builtin_mul_overflow(product, f, &product)) return std::nullopt;
  }
  return product;
}

inline std::optional<uint64_t> CheckedSum(uint64_t a, uint64_t b) {
  uint64_t sum;
  if (__builtin_add_overflow(a, b, &sum)) return std::nullopt;
  return sum;
}

}  // namespace switchyard
