// cluster/worker_id.h: names of workers and of the streams between them and routers.
#pragma once

#include "common/ids.h"

namespace switchyard {

// One registration of one worker. A worker that comes back has a new one.
using WorkerId = StrongId<struct WorkerTag, uint64_t>;
using StreamId = StrongId<struct StreamTag, uint64_t>;    // a router's; counts from 1 per worker
using SessionId = StrongId<struct SessionTag, uint64_t>;  // a worker's: one stream of one router

}  // namespace switchyard
