// cluster/worker_id.h: names one registration of one worker. A worker that comes back has a new
// one.
#pragma once

#include "common/ids.h"

namespace switchyard {

using WorkerId = StrongId<struct WorkerTag, uint64_t>;

}  // namespace switchyard
