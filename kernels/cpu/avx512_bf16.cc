#include "kernels/cpu/vec_avx512.h"
// After the registers that it is written over.
#include "kernels/cpu/inner_loops.h"

namespace switchyard::cpu {

const Isa kAvx512Bf16 = {"avx512_bf16",
                         kLanes,
                         kTileVectors,
                         true,
                         true,
                         SY_INNER_LOOPS(Tile<kTileDot>, Peak<kTileDot>, Tile<kTileInt8>,
                                        Peak<kTileInt8>, Tile<kTileInt4>)};

}  // namespace switchyard::cpu
