// engine/wire_conversion.h: cluster.proto's messages to and from the engine's own
// structs, checked: a peer's message may hold anything. Errors are kInvalidArgument and name field,
// value and limit.
#pragma once

#include "absl/status/statusor.h"
#include "engine/engine.h"
#include "engine/request.h"
#include "proto/cluster.pb.h"

namespace switchyard {

// What the engine is to do; the hand-off's fields are the worker's. Ids and length are checked
// against the model when the engine takes the request.
absl::StatusOr<EngineRequest> RequestFromProto(const cluster::v1::Submit& submit);
void ToProto(const EngineRequest& request, cluster::v1::Submit* submit);

// An output as the router is told of it. kAborted, which no router needs to hear, is kCancelled.
cluster::v1::AttemptEvent ToEvent(const EngineOutput& output);

// The load part of a heartbeat.
void ToProto(const EngineStats& stats, cluster::v1::Heartbeat* heartbeat);

}  // namespace switchyard
