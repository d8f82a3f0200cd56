#include "kernels/cpu/vec_avx512.h"
// After the registers that it is written over.
#include "kernels/cpu/inner_loops.h"

namespace switchyard::cpu {

const Isa kAvx512 = {"avx512", kLanes, kTileVectors,
                     false,    false,  SY_INNER_LOOPS(nullptr, nullptr, nullptr, nullptr, nullptr)};

}  // namespace switchyard::cpu
