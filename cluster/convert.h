// cluster/convert.h: our structs to and from the messages of cluster.proto. What comes from a peer
// may hold anything: ranges are checked by whoever uses the values.
#pragma once

#include "absl/status/status.h"
#include "common/ids.h"
#include "kernels/sample.h"
#include "proto/cluster.pb.h"

namespace switchyard {

inline constexpr uint32_t kClusterWireVersion = 1;

AttemptKey FromProto(const cluster::v1::AttemptId& id);
void ToProto(const AttemptKey& key, cluster::v1::AttemptId* id);

SamplingParams FromProto(const cluster::v1::WorkerSampling& sampling);
void ToProto(const SamplingParams& sampling, cluster::v1::WorkerSampling* out);

SampledToken FromProto(const cluster::v1::ScoredToken& token);
void ToProto(const SampledToken& token, cluster::v1::ScoredToken* out);

// An end with an error. `index` and the token stay unset.
cluster::v1::AttemptEvent ErrorEvent(const AttemptKey& key, const absl::Status& status);
// The status that an end with FINISH_ERROR carries; a code that is none, or OK, is kInternal.
absl::Status ErrorOf(const cluster::v1::AttemptEvent& event);

}  // namespace switchyard
