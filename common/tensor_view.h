// common/tensor_view.h: a borrowed, row-major, N-dimensional array. Owns nothing; the storage must
// outlive the view. Rows may be padded: stride(0) >= product of the inner extents; inner
// dimensions are dense.
#pragma once

#include <array>
#include <cstddef>
#include <type_traits>

#include "common/check.h"

namespace switchyard {

template <typename T, size_t N>
class TensorView {
  static_assert(N >= 1);

 public:
  TensorView() = default;
  // Dense view of `extents`.
  TensorView(T* data, std::array<size_t, N> extents) : data_(data), extents_(extents) {
    row_stride_ = 1;
    for (size_t i = 1; i < N; ++i) row_stride_ *= extents[i];
  }
  // Rows `row_stride` elements apart.
  TensorView(T* data, std::array<size_t, N> extents, size_t row_stride)
      : TensorView(data, extents) {
    SY_CHECK(row_stride >= row_stride_);
    row_stride_ = row_stride;
  }
  // A mutable view is also a const one.
  template <typename U>
  requires(std::is_same_v<const U, T> && !std::is_same_v<U, T>)
      TensorView(const TensorView<U, N>& o)  // NOLINT: implicit on purpose
      : data_(o.data()), extents_(o.extents()), row_stride_(o.row_stride()) {}

  T* data() const { return data_; }
  size_t extent(size_t i) const { return extents_[i]; }
  const std::array<size_t, N>& extents() const { return extents_; }
  size_t rows() const { return extents_[0]; }
  size_t row_stride() const { return row_stride_; }
  bool empty() const { return data_ == nullptr || extents_[0] == 0; }
  T* row(size_t i) const { return data_ + i * row_stride_; }

  // Last dimension of a matrix.
  size_t cols() const requires(N == 2) { return extents_[1]; }
  T& operator()(size_t i, size_t j) const requires(N == 2) { return data_[i * row_stride_ + j]; }
  // Rows [begin, begin + count).
  TensorView Slice(size_t begin, size_t count) const {
    SY_CHECK(begin + count <= extents_[0]);
    TensorView v = *this;
    v.data_ += begin * row_stride_;
    v.extents_[0] = count;
    return v;
  }

 private:
  T* data_ = nullptr;
  std::array<size_t, N> extents_{};
  size_t row_stride_ = 0;
};

template <typename T>
using Matrix = TensorView<T, 2>;

}  // namespace switchyard
