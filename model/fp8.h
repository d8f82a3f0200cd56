// model/fp8.h: FP8 E4M3 weights (Micikevicius et al. 2022, section 3: no infinities, one NaN) with
// a scale per block, as DeepSeek-V3 stores them, into BF16.
#pragma once

#include <cstddef>
#include <span>

#include "kernels/gemm.h"
#include "model/config.h"

namespace switchyard {

// The value of one E4M3 number: sign, 4 bits of exponent with bias 7, 3 of mantissa.
float FromE4m3(std::byte bits);

// values [N, K], scales [ceil(N / rows), ceil(K / columns)]; the last blocks may be cut. Returns
// BF16 [N, K]: each product of value and scale, rounded once, so exact for scales that are powers
// of two within BF16's range.
AlignedBuffer DequantizeFp8(std::span<const std::byte> values, size_t n, size_t k,
                            std::span<const float> scales, const Fp8Blocks& blocks);

}  // namespace switchyard
