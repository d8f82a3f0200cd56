// moe/row_codec.h: rows of activations to and from the element type of the wire, and the weighted
// sum of returned rows. The same bits on every machine: each element is rounded as ToBf16 does, and
// a product and a sum are two roundings.
#pragma once

#include <cstddef>

#include "common/bf16.h"

namespace switchyard {

// The loops for the widest registers of this machine. Pointers are valid for `n` elements; wire
// rows are aligned to 2 bytes (BF16) or 4 (FP32).
struct RowCodec {
  void (*encode)(const float* from, size_t n, std::byte* to);
  void (*decode)(const std::byte* from, size_t n, float* to);
  // y = w · x, or y += w · x, of a row on the wire.
  void (*set)(float w, const std::byte* x, size_t n, float* y);
  void (*add)(float w, const std::byte* x, size_t n, float* y);
};

// Of rows in `dtype` on the wire.
const RowCodec& RowCodecOf(DType dtype);

}  // namespace switchyard
