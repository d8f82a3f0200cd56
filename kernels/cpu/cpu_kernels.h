// kernels/cpu/cpu_kernels.h: the ops for x86 CPUs. What depends on the instruction set is in Isa;
// the classes here split the work over threads and own the order of rounding.
#pragma once

#include "kernels/cpu/isa.h"
#include "kernels/kernel_set.h"

namespace switchyard {

class CpuGemm final : public GemmOps {
 public:
  explicit CpuGemm(const cpu::Isa& isa) : isa_(isa) {}
  PackedWeight Pack(const WeightView& w, WeightFormat format) const override;
  size_t PackedBytes(WeightFormat format, size_t n, size_t k) const override;
  void GemmAll(KernelContext& ctx, std::span<const GemmCall> calls) const override;

 private:
  const cpu::Isa& isa_;
};

class CpuGroupedGemm final : public GroupedGemmOps {
 public:
  explicit CpuGroupedGemm(const cpu::Isa& isa) : isa_(isa) {}
  PackedExpert PackExpert(const WeightView& gate, const WeightView& up, const WeightView& down,
                          WeightFormat format) const override;
  size_t GateUpRows(size_t intermediate) const override;
  void ExpertFfn(KernelContext& ctx, ConstRows x, std::span<const int32_t> index,
                 std::span<const int32_t> offsets, std::span<const PackedExpert* const> experts,
                 Rows out) const override;

 private:
  const cpu::Isa& isa_;
};

class CpuAttention final : public AttentionOps {
 public:
  explicit CpuAttention(const cpu::Isa& isa) : isa_(isa) {}
  void PagedAttention(KernelContext& ctx, const AttentionShape& shape,
                      const KvAddressing& addressing, const std::byte* kv,
                      std::span<const AttentionSequence> sequences, Matrix<const float> q,
                      Matrix<float> out) const override;

 private:
  const cpu::Isa& isa_;
};

class CpuNorm final : public NormOps {
 public:
  explicit CpuNorm(const cpu::Isa& isa) : isa_(isa) {}
  void RmsNorm(KernelContext& ctx, Matrix<const float> x, std::span<const float> weight, float eps,
               Matrix<float> y) const override;

 private:
  const cpu::Isa& isa_;
};

// A path, ascending by preference, and whether this CPU can run it.
struct CpuPath {
  KernelSet set;
  const cpu::Isa* isa = nullptr;  // null: the reference
  bool supported = false;
};
std::vector<CpuPath> CpuPaths();

}  // namespace switchyard
