// bench/kernel_cases.h: the kernels at the shapes that inference gives them: what each call must
// compute and read, and the call itself.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "bench/ceilings.h"
#include "kernels/kernel_set.h"

namespace switchyard {

// One kernel with its data in place. A call's weights are not in a cache: calls take turns over
// several copies where one would stay there.
struct KernelCase {
  std::string kernel, shape;
  Ceiling arithmetic = Ceiling::kBf16Dot;  // the unit that its multiply-adds can use at best
  double operations = 0;                   // of one call; a multiply-add is two
  double bytes = 0;  // of one call: weights, cache, rows in and out, each once
  std::function<void(KernelContext&)> call;
};

// A case is made when it is measured, for all together need more memory than some machines have.
struct KernelCaseFactory {
  std::string name;  // "gemm/bfloat16/8x2048x1024"
  std::function<KernelCase(const KernelSet&, const cpu::Isa&)> make;
};

std::vector<KernelCaseFactory> AllKernelCases();

}  // namespace switchyard
