// kernels/rows.h: rows of activations as experts get and give them: BF16, as they travel, or FP32.
// Borrowed, like a TensorView.
#pragma once

#include <cstddef>
#include <type_traits>

#include "common/bf16.h"
#include "common/tensor_view.h"

namespace switchyard {

template <typename Byte>  // std::byte, or const std::byte
struct BasicRows {
  using Float = std::conditional_t<std::is_const_v<Byte>, const float, float>;

  Byte* data = nullptr;
  DType dtype = DType::kFloat32;
  size_t rows = 0, cols = 0, row_bytes = 0;

  BasicRows() = default;
  BasicRows(Byte* data, DType dtype, size_t rows, size_t cols, size_t row_bytes)
      : data(data), dtype(dtype), rows(rows), cols(cols), row_bytes(row_bytes) {}
  BasicRows(Matrix<Float> m)  // NOLINT: implicit on purpose
      : BasicRows(reinterpret_cast<Byte*>(m.data()), DType::kFloat32, m.rows(), m.cols(),
                  m.row_stride() * sizeof(float)) {}

  Byte* row(size_t i) const { return data + i * row_bytes; }
};
using Rows = BasicRows<std::byte>;

struct ConstRows : BasicRows<const std::byte> {
  using BasicRows::BasicRows;
  ConstRows(Matrix<float> m) : BasicRows(Matrix<const float>(m)) {}  // NOLINT: as this one
  ConstRows(const Rows& r)                                           // NOLINT: implicit on purpose
      : BasicRows(r.data, r.dtype, r.rows, r.cols, r.row_bytes) {}

  float operator()(size_t r, size_t c) const {
    return dtype == DType::kFloat32 ? reinterpret_cast<const float*>(row(r))[c]
                                    : ToFloat(reinterpret_cast<const Bf16*>(row(r))[c]);
  }
};

}  // namespace switchyard
