// kernels/reference/reference.h: every op as plain loops over FP32, one obvious statement after
// another. Slow; it is what all other paths are compared with.
#pragma once

#include "kernels/kernel_set.h"

namespace switchyard {

class ReferenceGemm final : public GemmOps {
 public:
  PackedWeight Pack(const WeightView& w, WeightFormat format) const override;
  size_t PackedBytes(WeightFormat format, size_t n, size_t k) const override;
  void GemmAll(KernelContext& ctx, std::span<const GemmCall> calls) const override;
};

class ReferenceGroupedGemm final : public GroupedGemmOps {
 public:
  PackedExpert PackExpert(const WeightView& gate, const WeightView& up, const WeightView& down,
                          WeightFormat format) const override;
  size_t GateUpRows(size_t intermediate) const override { return 2 * intermediate; }
  void ExpertFfn(KernelContext& ctx, ConstRows x, std::span<const int32_t> index,
                 std::span<const int32_t> offsets, std::span<const PackedExpert* const> experts,
                 Rows out) const override;
};

// A plain softmax over all keys of a row: no segments, so its bits are its own.
class ReferenceAttention final : public AttentionOps {
 public:
  void PagedAttention(KernelContext& ctx, const AttentionShape& shape,
                      const KvAddressing& addressing, const std::byte* kv,
                      std::span<const AttentionSequence> sequences, Matrix<const float> q,
                      Matrix<float> out) const override;
};

class ReferenceNorm final : public NormOps {
 public:
  void RmsNorm(KernelContext& ctx, Matrix<const float> x, std::span<const float> weight, float eps,
               Matrix<float> y) const override;
};

KernelSet ReferenceKernels();

}  // namespace switchyard
