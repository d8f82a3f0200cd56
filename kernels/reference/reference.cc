#include "kernels/reference/reference.h"

namespace switchyard {

KernelSet ReferenceKernels() {
  static const ReferenceGemm gemm;
  static const ReferenceGroupedGemm grouped_gemm;
  static const ReferenceAttention attention;
  static const ReferenceNorm norm;
  return {"reference", &gemm, &grouped_gemm, &attention, &norm};
}

}  // namespace switchyard
