// cluster/convert.h: our structs to and from the messages of cluster.proto. What comes from a peer
// may hold anything: ranges are checked by whoever uses the values.
#pragma once

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "common/ids.h"
#include "kernels/sample.h"
#include "proto/cluster.pb.h"

namespace switchyard {

inline constexpr uint32_t kClusterWireVersion = 2;

AttemptKey FromProto(const cluster::v1::AttemptId& id);
void ToProto(const AttemptKey& key, cluster::v1::AttemptId* id);

SamplingParams FromProto(const cluster::v1::WorkerSampling& sampling);
void ToProto(const SamplingParams& sampling, cluster::v1::WorkerSampling* out);

SampledToken FromProto(const cluster::v1::ScoredToken& token);
void ToProto(const SampledToken& token, cluster::v1::ScoredToken* out);

// A worker's advice on when to try again travels with a status: a payload of this type, decimal
// milliseconds.
inline constexpr char kRetryAfterUrl[] = "switchyard/retry_after_ms";
void SetRetryAfter(absl::Duration after, absl::Status* status);
// Zero if there is none, or nonsense; at most a minute.
absl::Duration RetryAfter(const absl::Status& status);

// An end with an error, and its RetryAfter. `index` and the token stay unset.
cluster::v1::AttemptEvent ErrorEvent(const AttemptKey& key, const absl::Status& status);
// The status that an end with FINISH_ERROR carries; a code that is none, or OK, is kInternal.
absl::Status ErrorOf(const cluster::v1::AttemptEvent& event);

}  // namespace switchyard
