// router/worker_event.h: what a worker says of an attempt, checked: it may say anything.
#pragma once

#include "proto/cluster.pb.h"
#include "router/attempt.h"

namespace switchyard {

// A message that no worker of ours sends becomes an end with kDataLoss, which names field and
// value: the attempt has failed, another worker may do better. `vocab_size`: 0 if it is not known.
// `logprobs_max`: of the best tokens beside one.
WorkerEvent EventFromProto(const cluster::v1::AttemptEvent& event, int vocab_size,
                           int logprobs_max);

}  // namespace switchyard
