// kernels/gemm.h: y = x · wᵀ with a weight that was packed once.
//
// Bits (docs/numerics.md): each output y[m][n] is one chain over k, in one order that depends on
// the kernel path and K alone: never on M, on N, on the row's place in the batch, or on threads.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string_view>
#include <utility>

#include "common/bf16.h"
#include "common/tensor_view.h"
#include "kernels/context.h"
#include "kernels/int8.h"

namespace switchyard {

// 64-byte aligned bytes, owned. From 2 MiB on aligned to huge pages, which the kernel is asked for:
// weights are read once per step, and with 4 KiB pages a third of that time goes to page walks.
class AlignedBuffer {
 public:
  AlignedBuffer() = default;
  explicit AlignedBuffer(size_t bytes);
  // [data, data + bytes) of what `owner` keeps, a mapped file, say; aligned too, and never written.
  AlignedBuffer(std::shared_ptr<void> owner, std::byte* data, size_t bytes)
      : data_(std::move(owner), data), size_(bytes) {}
  AlignedBuffer(AlignedBuffer&&) = default;
  AlignedBuffer& operator=(AlignedBuffer&&) = default;
  std::byte* data() const { return data_.get(); }
  size_t size() const { return size_; }

 private:
  std::shared_ptr<std::byte> data_;
  size_t size_ = 0;
};

// A weight [N, K] as it lies in a checkpoint: row-major, BF16 or FP32, borrowed.
struct WeightView {
  const void* data = nullptr;
  DType dtype = DType::kBfloat16;
  size_t n = 0, k = 0;
};

// What a packed weight consists of, and what x becomes to be multiplied with it.
enum class WeightFormat : uint8_t {
  kFloat32,   // nothing is rounded
  kBfloat16,  // x is rounded to BF16 too
  kInt8,      // x becomes 8-bit integers too (kernels/int8.h); the sums of its groups are added in
              // FP32, in ascending order
  kInt4,      // the same with weights of 4 bits; x becomes 8-bit integers
};
constexpr bool IsInteger(WeightFormat f) {
  return f == WeightFormat::kInt8 || f == WeightFormat::kInt4;
}
constexpr std::string_view Name(WeightFormat f) {
  return f == WeightFormat::kFloat32    ? "float32"
         : f == WeightFormat::kBfloat16 ? "bfloat16"
         : f == WeightFormat::kInt8     ? "int8"
                                        : "int4";
}
// Of a weight that is packed; of integers, with the scales and sums of their groups.
constexpr double BytesPerWeight(WeightFormat f) {
  constexpr double kGroup = 4.0 / kInt8Group;
  return f == WeightFormat::kFloat32    ? 4
         : f == WeightFormat::kBfloat16 ? 2
         : f == WeightFormat::kInt8     ? 1 + kGroup
                                        : 0.5 + kGroup;
}
constexpr WeightFormat FormatOf(DType t) {
  return t == DType::kFloat32 ? WeightFormat::kFloat32 : WeightFormat::kBfloat16;
}

// A weight [N, K] in the private layout of the kernel path that packed it. Only that path reads it.
struct PackedWeight {
  AlignedBuffer bytes;
  WeightFormat format = WeightFormat::kBfloat16;
  size_t n = 0, k = 0;
};

// y [M, N] = x [M, K] · wᵀ, FP32 sums. M may be 0. y is overwritten and overlaps no x.
struct GemmCall {
  Matrix<const float> x;
  const PackedWeight* w = nullptr;
  Matrix<float> y;
};

class GemmOps {
 public:
  virtual ~GemmOps() = default;
  // Packs `w` for arithmetic in `format`. FP32 -> BF16 rounds to nearest even. n, k >= 1.
  virtual PackedWeight Pack(const WeightView& w, WeightFormat format) const = 0;
  // Of a weight [n, k] that this path packed.
  virtual size_t PackedBytes(WeightFormat format, size_t n, size_t k) const = 0;
  // All of `calls`, which do not depend on each other: one wait for the threads instead of one for
  // each. The bits are those of one call at a time.
  virtual void GemmAll(KernelContext& ctx, std::span<const GemmCall> calls) const = 0;

  void Gemm(KernelContext& ctx, Matrix<const float> x, const PackedWeight& w,
            Matrix<float> y) const {
    const GemmCall call{x, &w, y};
    GemmAll(ctx, {&call, 1});
  }
};

}  // namespace switchyard
