#include "model/cuda/packers.h"

#include "common/check.h"

namespace switchyard::cuda {
namespace {

float* ScalesOf(const PackedWeight& w) {
  return reinterpret_cast<float*>(w.bytes.data() + SizesOf(w.format, w.n, w.k).data);
}

class PackGemm final : public GemmOps {
 public:
  PackedWeight Pack(const WeightView& w, WeightFormat format) const override {
    PackedWeight packed{AlignedBuffer(PackedBytes(format, w.n, w.k)), format, w.n, w.k};
    PackWeight(w, FormatOf(format), packed.bytes.data(), ScalesOf(packed));
    return packed;
  }
  size_t PackedBytes(WeightFormat format, size_t n, size_t k) const override {
    const PackedSizes sizes = SizesOf(format, n, k);
    return sizes.data + sizes.scales * sizeof(float);
  }
  void GemmAll(KernelContext&, std::span<const GemmCall>) const override {
    SY_CHECK_MSG(false, "a device's weights are multiplied there");
  }
};

class PackExperts final : public GroupedGemmOps {
 public:
  PackedExpert PackExpert(const WeightView& gate, const WeightView& up, const WeightView& down,
                          WeightFormat format) const override {
    const PackGemm gemm;
    PackedWeight both{AlignedBuffer(gemm.PackedBytes(format, 2 * gate.n, gate.k)), format,
                      2 * gate.n, gate.k};
    PackGateUp(gate, up, FormatOf(format), both.bytes.data(), ScalesOf(both));
    return {std::move(both), gemm.Pack(down, format), gate.k, gate.n};
  }
  size_t GateUpRows(size_t intermediate) const override { return 2 * intermediate; }
  void ExpertFfn(KernelContext&, ConstRows, std::span<const int32_t>, std::span<const int32_t>,
                 std::span<const PackedExpert* const>, Rows) const override {
    SY_CHECK_MSG(false, "a device's weights are multiplied there");
  }
};

}  // namespace

PackedSizes SizesOf(WeightFormat format, size_t n, size_t k) {
  const auto rows = static_cast<int>(n), columns = static_cast<int>(k);
  return {WeightBytes(FormatOf(format), rows, columns),
          WeightScales(FormatOf(format), rows, columns)};
}

KernelSet Packers() {
  static const PackGemm gemm;
  static const PackExperts experts;
  return {.name = "cuda", .gemm = &gemm, .grouped_gemm = &experts};
}

}  // namespace switchyard::cuda
