#include "kernels/cpu/vec_avx2.h"
// After the registers that it is written over.
#include "kernels/cpu/inner_loops.h"

namespace switchyard::cpu {

const Isa kAvx2 = {"avx2", kLanes, kTileVectors,
                   false,  false,  SY_INNER_LOOPS(nullptr, nullptr, nullptr, nullptr, nullptr)};

}  // namespace switchyard::cpu
