// kernels/cuda/gemm_launch.h: the GEMM kernels of each file, behind one call (gemm.cu.cc).
#pragma once

#include "kernels/cuda/gemm.h"

namespace switchyard::cuda {

// Epilogue and type of y are looked at when a tile is stored: an instance of a kernel for each
// would be no faster and take nvcc four times as long.
struct GemmArguments {
  GemmInput x;
  DeviceWeight w;
  RowGroups groups;
  Epilogue epilogue;
  DeviceRows y;
};

absl::Status GemmBf16(Stream stream, const GemmArguments& a);
absl::Status GemmWgmma(Stream stream, const GemmArguments& a);  // BF16, FP8
absl::Status GemmScaled(Stream stream, const GemmArguments& a);
absl::Status GemmFloat(Stream stream, const GemmArguments& a);

}  // namespace switchyard::cuda
