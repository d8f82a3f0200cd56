// engine/machine_peak.h: what the machine can do at most, for shares of it.
#pragma once

namespace switchyard {

// Per second, of all threads of a rank; 0: not known, the shares stay 0.
struct MachinePeak {
  double flops = 0, read_bytes = 0;
};

}  // namespace switchyard
