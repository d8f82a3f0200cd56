#include "kernels/cpu/vec_avx512.h"
// After the registers that it is written over.
#include "kernels/cpu/inner_loops.h"

namespace switchyard::cpu {

const Isa kAvx512Vnni = {
    "avx512_vnni",
    kLanes,
    kTileVectors,
    false,
    true,
    SY_INNER_LOOPS(nullptr, nullptr, Tile<kTileInt8>, Peak<kTileInt8>, Tile<kTileInt4>)};

}  // namespace switchyard::cpu
