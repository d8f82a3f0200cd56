// bench/worker_backend.h: load on one worker without a router: what a router adds is the difference
// to this. Dials as a router does, on one stream.
#pragma once

#include <memory>

#include "bench/backend.h"

namespace switchyard {

// Of the options, `address` counts. `clock` must outlive it.
std::unique_ptr<LoadBackend> MakeWorkerBackend(const BackendOptions& options, const Clock* clock);

}  // namespace switchyard
