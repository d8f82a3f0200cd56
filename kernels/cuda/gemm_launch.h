// kernels/cuda/gemm_launch.h: the GEMM kernels of each file, behind one call (gemm.cu.cc).
#pragma once

#include "kernels/cuda/gemm.h"

namespace switchyard::cuda {

struct GemmArguments {
  GemmInput x;
  DeviceWeight w;
  RowGroups groups;
};

absl::Status GemmBf16(Stream stream, const GemmArguments& a, Epilogue epilogue, DeviceRows y);
absl::Status GemmScaled(Stream stream, const GemmArguments& a, Epilogue epilogue, DeviceRows y);
absl::Status GemmFloat(Stream stream, const GemmArguments& a, Epilogue epilogue, DeviceRows y);

// Calls f.template operator()<epilogue, type of y>(y as a matrix).
template <typename F>
absl::Status WithEpilogue(Epilogue epilogue, const DeviceRows& y, F f) {
  const DeviceMatrix<float> floats(static_cast<float*>(y.data), y.rows, y.cols, y.stride);
  const DeviceMatrix<Bf16> halves(static_cast<Bf16*>(y.data), y.rows, y.cols, y.stride);
  const bool exact = y.dtype == DType::kFloat32;
  if (epilogue == Epilogue::kSiluMul) {
    return exact ? f.template operator()<Epilogue::kSiluMul>(floats)
                 : f.template operator()<Epilogue::kSiluMul>(halves);
  }
  return exact ? f.template operator()<Epilogue::kStore>(floats)
               : f.template operator()<Epilogue::kStore>(halves);
}

}  // namespace switchyard::cuda
