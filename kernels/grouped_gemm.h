// kernels/grouped_gemm.h: the gated FFN of many experts at once:
//   out[r] = down_e · round(SiLU(gate_e · x[r]) ⊙ (up_e · x[r])),  e = the expert that owns row r.
// Also serves a dense FFN or a shared expert: one expert that owns every row.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/gemm.h"
#include "kernels/rows.h"

namespace switchyard {

// One expert's weights, packed. Letters: H hidden, I intermediate width.
struct PackedExpert {
  PackedWeight gate_up;  // [2I or more, H]: how gate and up rows interleave is the path's own
  PackedWeight down;     // [H, I]
  size_t hidden = 0, intermediate = 0;
};

class GroupedGemmOps {
 public:
  virtual ~GroupedGemmOps() = default;
  // gate, up [I, H]; down [H, I].
  virtual PackedExpert PackExpert(const WeightView& gate, const WeightView& up,
                                  const WeightView& down, WeightFormat format) const = 0;
  // n of a packed gate_up of this width.
  virtual size_t GateUpRows(size_t intermediate) const = 0;
  // Row r is x.row(index[r]); index [R] may name a row of x [P, H] more than once; an empty one is
  // 0 … P - 1. Rows of expert e are [offsets[e], offsets[e+1]); offsets [E+1], ascending,
  // offsets[E] == R. out [R, H], overwritten. x and the activation become what the format says; but
  // for kFloat32, out is rounded to BF16, also where it holds FP32. Row r's bits depend on its
  // values and its expert alone.
  virtual void ExpertFfn(KernelContext& ctx, ConstRows x, std::span<const int32_t> index,
                         std::span<const int32_t> offsets,
                         std::span<const PackedExpert* const> experts, Rows out) const = 0;
};

}  // namespace switchyard
