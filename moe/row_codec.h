// moe/row_codec.h: rows of activations to and from the element type of the wire, and the weighted
// sum of returned rows. The same bits on every machine: each element is rounded as ToBf16 does, and
// a product and a sum are two roundings.
#pragma once

#include <cstddef>

#include "common/bf16.h"
#include "kernels/int8.h"

namespace switchyard {

// The loops for the widest registers of this machine. Pointers are valid for `n` elements; wire
// rows are aligned to 2 bytes (BF16) or 4 (FP32).
struct RowCodec {
  void (*encode)(const float* from, size_t n, std::byte* to);
  void (*decode)(const std::byte* from, size_t n, float* to);
  // y = Σ w[i] · x[i], or with `more` y += that, of `rows` rows x[i] on the wire: a chain of
  // product-then-sum in their order, the same bits however the chain is cut into calls.
  void (*sum)(bool more, const float* w, const std::byte* const* x, size_t rows, size_t n,
              float* y);
};
// So many rows of one call are read side by side: their cache misses overlap, and y is met once.
inline constexpr size_t kSumRows = 8;

// Of rows in `dtype` on the wire.
const RowCodec& RowCodecOf(DType dtype);

// Tokens on their way to experts, which get rows of a dtype. They travel as those, or, of BF16, as
// 8-bit integers: the codes of kernels/int8.h of the row in BF16, behind the greatest |x| of each
// group, from which both ends make its scale. What is made of them is such that to quantise it
// gives the same codes and scales again: experts whose weights are integers compute the same bits
// as without. All others get numbers that are rounded, whether or not they leave their rank.
struct TokenCodec {
  void (*send)(const float* from, size_t n, std::byte* wire);
  void (*receive)(const std::byte* wire, size_t n, std::byte* row);
  void (*keep)(const float* from, size_t n, std::byte* row);  // both at once
};
// int8: only with kBfloat16.
const TokenCodec& TokenCodecOf(DType dtype, bool int8);
// Of a token of n elements on the wire, where it is aligned to 2 bytes (4 in FP32).
constexpr size_t TokenBytes(DType dtype, bool int8, size_t n) {
  return int8 ? (n + kInt8Group - 1) / kInt8Group * sizeof(Bf16) + (n + 1) / 2 * 2
              : n * SizeOf(dtype);
}

}  // namespace switchyard
