#include "moe/row_codec.h"

#include <cstring>

namespace switchyard {
namespace {

// One body, compiled once per instruction set below; the compiler vectorizes it (-O3 in BUILD).
#define SY_INLINE inline __attribute__((always_inline))

struct AsBf16 {
  static SY_INLINE void Encode(const float* from, size_t n, std::byte* to) {
    auto* out = reinterpret_cast<uint16_t*>(to);
    for (size_t i = 0; i < n; ++i) {
      // ToBf16 without a branch.
      const uint32_t u = std::bit_cast<uint32_t>(from[i]);
      const uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
      const uint32_t quiet = (u >> 16) | 0x40u;
      out[i] = static_cast<uint16_t>((u & 0x7fffffffu) > 0x7f800000u ? quiet : rounded);
    }
  }
  static SY_INLINE float At(const std::byte* from, size_t i) {
    return std::bit_cast<float>(uint32_t{reinterpret_cast<const uint16_t*>(from)[i]} << 16);
  }
};

struct AsFloat {
  static SY_INLINE void Encode(const float* from, size_t n, std::byte* to) {
    std::memcpy(to, from, n * sizeof *from);
  }
  static SY_INLINE float At(const std::byte* from, size_t i) {
    return reinterpret_cast<const float*>(from)[i];
  }
};

template <typename As>
SY_INLINE void Decode(const std::byte* from, size_t n, float* to) {
  for (size_t i = 0; i < n; ++i) to[i] = As::At(from, i);
}
template <typename As>
SY_INLINE void Set(float w, const std::byte* x, size_t n, float* y) {
  for (size_t i = 0; i < n; ++i) y[i] = w * As::At(x, i);
}
template <typename As>
SY_INLINE void Add(float w, const std::byte* x, size_t n, float* y) {
  for (size_t i = 0; i < n; ++i) y[i] += w * As::At(x, i);
}

#define SY_CODEC(isa, attributes)                                                 \
  template <typename As>                                                          \
  struct isa {                                                                    \
    attributes static void encode(const float* from, size_t n, std::byte* to) {   \
      As::Encode(from, n, to);                                                    \
    }                                                                             \
    attributes static void decode(const std::byte* from, size_t n, float* to) {   \
      Decode<As>(from, n, to);                                                    \
    }                                                                             \
    attributes static void set(float w, const std::byte* x, size_t n, float* y) { \
      Set<As>(w, x, n, y);                                                        \
    }                                                                             \
    attributes static void add(float w, const std::byte* x, size_t n, float* y) { \
      Add<As>(w, x, n, y);                                                        \
    }                                                                             \
    static constexpr RowCodec kCodec = {&encode, &decode, &set, &add};            \
  };

SY_CODEC(Plain, )
#ifdef __x86_64__
SY_CODEC(Avx2, __attribute__((target("avx2"))))
SY_CODEC(Avx512, __attribute__((target("avx512f,avx512bw,avx512vl,prefer-vector-width=512"))))
#endif

template <typename As>
const RowCodec& Widest() {
#ifdef __x86_64__
  if (__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl")) {
    return Avx512<As>::kCodec;
  }
  if (__builtin_cpu_supports("avx2")) return Avx2<As>::kCodec;
#endif
  return Plain<As>::kCodec;
}

}  // namespace

const RowCodec& RowCodecOf(DType dtype) {
  return dtype == DType::kBfloat16 ? Widest<AsBf16>() : Widest<AsFloat>();
}

}  // namespace switchyard
