#include "kvtransfer/hello_proto.h"

namespace switchyard {

namespace pb = handoff::v1;

pb::HelloRequest ToProto(const KvHello& hello) {
  pb::HelloRequest request;
  request.set_wire_version(hello.wire_version);
  request.set_numerics_id(hello.numerics_id);
  request.set_layout_id(hello.layout_id);
  request.set_peer_name(hello.peer_name);
  request.set_incarnation(hello.incarnation);
  for (const std::string& lane : hello.lanes) request.add_lanes(lane);
  request.set_ucx_address(hello.ucx_address);
  request.set_host_id(hello.host_id);
  return request;
}

KvHello FromProto(const pb::HelloRequest& request) {
  KvHello hello;
  hello.wire_version = request.wire_version();
  hello.numerics_id = request.numerics_id();
  hello.layout_id = request.layout_id();
  hello.peer_name = request.peer_name();
  hello.host_id = request.host_id();
  hello.incarnation = request.incarnation();
  hello.lanes = {request.lanes().begin(), request.lanes().end()};
  hello.ucx_address = request.ucx_address();
  return hello;
}

pb::HelloResponse ToProto(const KvHelloAnswer& answer) {
  pb::HelloResponse response;
  response.set_wire_version(answer.wire_version);
  response.set_peer_token(answer.peer_token);
  response.set_incarnation(answer.incarnation);
  response.set_lane(answer.lane);
  response.set_ucx_address(answer.ucx_address);
  response.set_ring_ucx_address(answer.ring_ucx_address);
  response.set_ring_rkey(answer.ring_rkey);
  response.set_ring_address(answer.ring_address);
  response.set_ring_bytes(answer.ring_bytes);
  return response;
}

KvHelloAnswer FromProto(const pb::HelloResponse& answer) {
  return {.wire_version = answer.wire_version(),
          .peer_token = answer.peer_token(),
          .incarnation = answer.incarnation(),
          .lane = answer.lane(),
          .ucx_address = answer.ucx_address(),
          .ring_ucx_address = answer.ring_ucx_address(),
          .ring_rkey = answer.ring_rkey(),
          .ring_address = answer.ring_address(),
          .ring_bytes = answer.ring_bytes()};
}

}  // namespace switchyard
