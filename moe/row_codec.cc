#include "moe/row_codec.h"

#include <algorithm>
#include <cstring>

namespace switchyard {
namespace {

// One body, compiled once per instruction set below; the compiler vectorizes it (-O3 in BUILD).
#define SY_INLINE inline __attribute__((always_inline))
#define SY_INLINE_LAMBDA __attribute__((always_inline))

struct AsBf16 {
  static constexpr size_t kBytes = sizeof(Bf16);
  static SY_INLINE void Encode(const float* from, size_t n, std::byte* to) {
    auto* out = reinterpret_cast<uint16_t*>(to);
    for (size_t i = 0; i < n; ++i) {
      out[i] = static_cast<uint16_t>(Bits(from[i]));
    }
  }
  // ToBf16 without a branch.
  static SY_INLINE uint32_t Bits(float x) {
    const uint32_t u = std::bit_cast<uint32_t>(x);
    const uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
    const uint32_t quiet = (u >> 16) | 0x40u;
    return (u & 0x7fffffffu) > 0x7f800000u ? quiet : rounded;
  }
  static SY_INLINE float At(const std::byte* from, size_t i) {
    return std::bit_cast<float>(uint32_t{reinterpret_cast<const uint16_t*>(from)[i]} << 16);
  }
};

struct AsFloat {
  static constexpr size_t kBytes = sizeof(float);
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
template <typename As, bool kMore, size_t kRows>
SY_INLINE void SumOf(const float* weights, const std::byte* const* rows, size_t n,
                     float* __restrict y) {
  float w[kRows];
  const std::byte* x[kRows];
  std::copy_n(weights, kRows, w);
  std::copy_n(rows, kRows, x);
  for (size_t i = 0; i < n; ++i) {
    float sum = w[0] * As::At(x[0], i);
    if constexpr (kMore) sum = y[i] + sum;
    for (size_t k = 1; k < kRows; ++k) sum += w[k] * As::At(x[k], i);
    y[i] = sum;
  }
}
// kRows at a time, then half as many, …
template <typename As, size_t kRows>
SY_INLINE void Sum(bool more, const float* w, const std::byte* const* x, size_t rows, size_t n,
                   float* y) {
  for (; rows >= kRows; rows -= kRows, w += kRows, x += kRows, more = true) {
    if (more) {
      SumOf<As, true, kRows>(w, x, n, y);
    } else {
      SumOf<As, false, kRows>(w, x, n, y);
    }
  }
  if constexpr (kRows > 1) Sum<As, kRows / 2>(more, w, x, rows, n, y);
}

template <typename As>
SY_INLINE void Copy(const std::byte* from, size_t n, std::byte* to) {
  std::memcpy(to, from, n * As::kBytes);
}

constexpr size_t Groups(size_t n) { return (n + kInt8Group - 1) / kInt8Group; }

// The nearest integer, ties to even, of |x| < 2^22: what is added leaves no room for a fraction.
SY_INLINE int32_t Nearest(float x) {
  constexpr float kNoFraction = 12582912.0f;  // 1.5 · 2^23
  return std::bit_cast<int32_t>(x + kNoFraction) - std::bit_cast<int32_t>(kNoFraction);
}

// Returns the greatest |x|, a BF16.
SY_INLINE uint16_t EncodeGroup(const float* from, size_t n, int8_t* codes) {
  float x[kInt8Group];
  uint32_t most = 0;
  for (size_t i = 0; i < n; ++i) {
    const uint32_t bits = AsBf16::Bits(from[i]) << 16;
    x[i] = std::bit_cast<float>(bits);
    most = std::max(most, bits & 0x7fffffffu);
  }
  const float factor = Int8Factor(Int8Scale(std::bit_cast<float>(most)));
  if (factor > 0) {
    for (size_t i = 0; i < n; ++i) codes[i] = static_cast<int8_t>(Nearest(x[i] * factor));
  } else {
    std::memset(codes, 0, n);
  }
  return static_cast<uint16_t>(most >> 16);
}

// Codes as great as any become the greatest |x|, so that it is found again, and with it the scale;
// the others move by less than half a step when they are rounded to BF16.
SY_INLINE void DecodeGroup(uint16_t greatest, const int8_t* codes, size_t n, uint16_t* to) {
  const float most = std::bit_cast<float>(uint32_t{greatest} << 16), scale = Int8Scale(most);
  const float factor = Int8Factor(scale);
  if (!(factor > 0)) {
    std::fill_n(to, n, static_cast<uint16_t>(std::isfinite(most) ? 0 : 0x7fc0));
    return;
  }
  const int32_t last = Nearest(most * factor);
  for (size_t i = 0; i < n; ++i) {
    const int32_t code = codes[i], sign = code < 0 ? 0x8000 : 0;
    const uint32_t near = AsBf16::Bits(static_cast<float>(code) * scale);
    to[i] = static_cast<uint16_t>((code < 0 ? -code : code) == last ? greatest | sign : near);
  }
}

// The size of all groups but the last is a constant to the compiler.
template <typename Body>
SY_INLINE void ForGroups(size_t n, Body body) {
  size_t i = 0;
  for (; i + kInt8Group <= n; i += kInt8Group) body(i, kInt8Group);
  if (i < n) body(i, n - i);
}

struct AsInt8 {
  static SY_INLINE void Send(const float* from, size_t n, std::byte* wire) {
    auto* greatest = reinterpret_cast<uint16_t*>(wire);
    auto* codes = reinterpret_cast<int8_t*>(greatest + Groups(n));
    ForGroups(n, [&](size_t i, size_t count)
                     SY_INLINE_LAMBDA { *greatest++ = EncodeGroup(from + i, count, codes + i); });
    if (n % 2 != 0) codes[n] = 0;
  }
  static SY_INLINE void Receive(const std::byte* wire, size_t n, std::byte* row) {
    const auto* greatest = reinterpret_cast<const uint16_t*>(wire);
    const auto* codes = reinterpret_cast<const int8_t*>(greatest + Groups(n));
    auto* to = reinterpret_cast<uint16_t*>(row);
    ForGroups(n, [&](size_t i, size_t count)
                     SY_INLINE_LAMBDA { DecodeGroup(*greatest++, codes + i, count, to + i); });
  }
  static SY_INLINE void Keep(const float* from, size_t n, std::byte* row) {
    auto* to = reinterpret_cast<uint16_t*>(row);
    ForGroups(n, [&](size_t i, size_t count) SY_INLINE_LAMBDA {
      int8_t codes[kInt8Group];
      const uint16_t greatest = EncodeGroup(from + i, count, codes);
      DecodeGroup(greatest, codes, count, to + i);
    });
  }
};

#define SY_CODEC(isa, attributes)                                                                 \
  template <typename As>                                                                          \
  struct isa {                                                                                    \
    attributes static void encode(const float* from, size_t n, std::byte* to) {                   \
      As::Encode(from, n, to);                                                                    \
    }                                                                                             \
    attributes static void decode(const std::byte* from, size_t n, float* to) {                   \
      Decode<As>(from, n, to);                                                                    \
    }                                                                                             \
    attributes static void sum(bool more, const float* w, const std::byte* const* x, size_t rows, \
                               size_t n, float* y) {                                              \
      Sum<As, kSumRows>(more, w, x, rows, n, y);                                                  \
    }                                                                                             \
    attributes static void copy(const std::byte* from, size_t n, std::byte* to) {                 \
      Copy<As>(from, n, to);                                                                      \
    }                                                                                             \
    static constexpr RowCodec kCodec = {&encode, &decode, &sum};                                  \
    static constexpr TokenCodec kTokens = {&encode, &copy, &encode};                              \
  };                                                                                              \
  struct isa##Int8 {                                                                              \
    attributes static void send(const float* from, size_t n, std::byte* wire) {                   \
      AsInt8::Send(from, n, wire);                                                                \
    }                                                                                             \
    attributes static void receive(const std::byte* w, size_t n, std::byte* row) {                \
      AsInt8::Receive(w, n, row);                                                                 \
    }                                                                                             \
    attributes static void keep(const float* from, size_t n, std::byte* row) {                    \
      AsInt8::Keep(from, n, row);                                                                 \
    }                                                                                             \
    static constexpr TokenCodec kTokens = {&send, &receive, &keep};                               \
  };

SY_CODEC(Plain, )
#ifdef __x86_64__
SY_CODEC(Avx2, __attribute__((target("avx2"))))
SY_CODEC(Avx512, __attribute__((target("avx512f,avx512bw,avx512vl,prefer-vector-width=512"))))
#else
template <typename As>
using Avx2 = Plain<As>;
template <typename As>
using Avx512 = Plain<As>;
using Avx2Int8 = PlainInt8;
using Avx512Int8 = PlainInt8;
#endif

// That of the three for the widest registers of this machine.
template <typename Codec>
const Codec& Widest([[maybe_unused]] const Codec& avx512, [[maybe_unused]] const Codec& avx2,
                    const Codec& plain) {
#ifdef __x86_64__
  if (__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl")) return avx512;
  if (__builtin_cpu_supports("avx2")) return avx2;
#endif
  return plain;
}

}  // namespace

const RowCodec& RowCodecOf(DType dtype) {
  return dtype == DType::kBfloat16
             ? Widest(Avx512<AsBf16>::kCodec, Avx2<AsBf16>::kCodec, Plain<AsBf16>::kCodec)
             : Widest(Avx512<AsFloat>::kCodec, Avx2<AsFloat>::kCodec, Plain<AsFloat>::kCodec);
}

const TokenCodec& TokenCodecOf(DType dtype, bool int8) {
  if (int8) return Widest(Avx512Int8::kTokens, Avx2Int8::kTokens, PlainInt8::kTokens);
  return dtype == DType::kBfloat16
             ? Widest(Avx512<AsBf16>::kTokens, Avx2<AsBf16>::kTokens, Plain<AsBf16>::kTokens)
             : Widest(Avx512<AsFloat>::kTokens, Avx2<AsFloat>::kTokens, Plain<AsFloat>::kTokens);
}

}  // namespace switchyard
