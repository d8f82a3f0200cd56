// common/ids.h: strong ids. A value of one kind cannot be passed where another is wanted.
// Unwrap with value() only inside kernels and at the edge to proto messages.
#pragma once

#include <compare>
#include <cstdint>
#include <functional>
#include <string>

namespace switchyard {

template <typename Tag, typename Rep>
class StrongId {
 public:
  using rep = Rep;
  constexpr StrongId() = default;
  constexpr explicit StrongId(Rep value) : value_(value) {}
  constexpr Rep value() const { return value_; }
  friend constexpr auto operator<=>(StrongId, StrongId) = default;
  template <typename H>
  friend H AbslHashValue(H h, StrongId id) {
    return H::combine(std::move(h), id.value_);
  }

 private:
  Rep value_{};
};

using BlockId = StrongId<struct BlockTag, int32_t>;    // a KV block in one rank's pool
using ExpertId = StrongId<struct ExpertTag, int32_t>;  // a physical expert
using RankId = StrongId<struct RankTag, int32_t>;      // a rank of one expert-parallel group
using TokenId = int32_t;                               // an entry of the vocabulary

// One try of one request. The router numbers attempts from 1; everything that a worker says or
// stores about a request is under both numbers, so that a late message of an old attempt is known.
inline constexpr size_t kRequestIdBytesMax = 128;
inline constexpr size_t kCacheSaltBytesMax = 256;

struct AttemptKey {
  std::string request;  // unique per router process, at most 128 bytes
  int32_t attempt = 1;
  friend auto operator<=>(const AttemptKey&, const AttemptKey&) = default;
  template <typename H>
  friend H AbslHashValue(H h, const AttemptKey& k) {
    return H::combine(std::move(h), k.request, k.attempt);
  }
};

}  // namespace switchyard

template <typename Tag, typename Rep>
struct std::hash<switchyard::StrongId<Tag, Rep>> {
  size_t operator()(switchyard::StrongId<Tag, Rep> id) const {
    return std::hash<Rep>()(id.value());
  }
};
