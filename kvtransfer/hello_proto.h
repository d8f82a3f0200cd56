// kvtransfer/hello_proto.h: an introduction to and from the messages of handoff.proto.
#pragma once

#include "kvtransfer/kv_transfer.h"
#include "proto/handoff.pb.h"

namespace switchyard {

handoff::v1::HelloRequest ToProto(const KvHello& hello);
KvHello FromProto(const handoff::v1::HelloRequest& request);
handoff::v1::HelloResponse ToProto(const KvHelloAnswer& answer);
KvHelloAnswer FromProto(const handoff::v1::HelloResponse& response);

}  // namespace switchyard
