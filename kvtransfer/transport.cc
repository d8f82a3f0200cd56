#include "kvtransfer/transport.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/status_macros.h"

namespace switchyard {
namespace {

// An endpoint, and what must live as long as the lane: on the sender's side the mapped ring, on the
// receiver's the segment itself.
class UcxWire final : public LaneWire {
 public:
  void Send(unsigned am, std::span<const std::byte> header, std::span<const std::byte> payload,
            std::function<void(absl::Status)> done) override {
    endpoint->Send(am, header, payload, std::move(done));
  }
  void Close(bool flush) override { endpoint->Close(flush); }
  std::string Describe() const override { return endpoint->DescribeLanes(); }

  std::unique_ptr<UcxEndpoint> endpoint, ring_endpoint;
  std::unique_ptr<UcxMapping> mapping;
  std::unique_ptr<UcxMemory> segment;
};

// Maps the ring that the answer names; returns its data.
absl::StatusOr<std::span<std::byte>> MapRing(UcxWorker* posix, const KvHelloAnswer& answer,
                                             size_t block_bytes, UcxWire* wire) {
  if (posix == nullptr) return absl::InvalidArgumentError("lane is \"shm\", which was not offered");
  const size_t stride = RingStride(block_bytes);
  if (answer.ring_bytes < kRingDataOffset + 2 * stride) {
    return absl::InvalidArgumentError(absl::StrCat(
        "ring_bytes is ", answer.ring_bytes, ", must be at least ", kRingDataOffset + 2 * stride));
  }
  ASSIGN_OR_RETURN(wire->ring_endpoint,
                   UcxEndpoint::Create(posix, answer.ring_ucx_address, [](const absl::Status&) {}));
  ASSIGN_OR_RETURN(wire->mapping, UcxMapping::Create(wire->ring_endpoint.get(), answer.ring_rkey,
                                                     answer.ring_address, answer.ring_bytes));
  // The key names a file descriptor of the receiver. Had it closed the segment since, the number
  // could mean another peer's by now: only what we have mapped can say whose it is.
  uint64_t owner[2];
  std::memcpy(owner, wire->mapping->bytes().data(), sizeof owner);
  if (owner[0] != kRingMagic || owner[1] != answer.peer_token) {
    return absl::UnavailableError("the mapped ring segment is not ours: say Hello again");
  }
  return wire->mapping->bytes().subspan(kRingDataOffset);
}

// Makes the peer's ring and tells the answer; returns its data.
absl::StatusOr<std::span<const std::byte>> MakeRing(const TransportWorkers& workers,
                                                    size_t ring_bytes, size_t block_bytes,
                                                    KvHelloAnswer* answer, UcxWire* wire) {
  const size_t data_bytes = ring_bytes / kRingAlign * kRingAlign;
  if (data_bytes < 2 * RingStride(block_bytes)) {
    return absl::InvalidArgumentError(absl::StrCat("ring_bytes is ", ring_bytes,
                                                   ", must be at least two blocks of ",
                                                   RingStride(block_bytes)));
  }
  ASSIGN_OR_RETURN(wire->segment,
                   UcxMemory::Create(workers.posix_context.get(), kRingDataOffset + data_bytes));
  const std::span<std::byte> bytes = wire->segment->bytes();
  const uint64_t owner[2] = {kRingMagic, answer->peer_token};
  std::memcpy(bytes.data(), owner, sizeof owner);
  answer->ring_ucx_address = workers.posix->address();
  answer->ring_rkey = wire->segment->rkey();
  answer->ring_address = reinterpret_cast<uint64_t>(bytes.data());
  answer->ring_bytes = bytes.size();
  return bytes.subspan(kRingDataOffset, data_bytes);
}

}  // namespace

absl::StatusOr<std::shared_ptr<SendLane>> ConnectSendLane(const TransportWorkers& workers,
                                                          const KvHelloAnswer& answer,
                                                          const SendLane::Options& options,
                                                          SendLane::OnSent on_sent,
                                                          OnLaneError on_error) {
  auto wire = std::make_unique<UcxWire>();
  ASSIGN_OR_RETURN(wire->endpoint,
                   UcxEndpoint::Create(workers.tcp.get(), answer.ucx_address, std::move(on_error)));
  std::span<std::byte> ring;
  if (answer.lane == "shm") {
    ASSIGN_OR_RETURN(ring, MapRing(workers.posix.get(), answer, options.block_bytes, wire.get()));
  } else if (answer.lane != "tcp") {
    return absl::InvalidArgumentError(absl::StrCat("lane is \"", answer.lane, "\", not known"));
  }
  return std::make_shared<SendLane>(options, answer.lane, std::move(wire), ring,
                                    std::move(on_sent));
}

absl::StatusOr<std::unique_ptr<ReceiveLane>> ConnectReceiveLane(
    const TransportWorkers& workers, const KvHello& hello, const KvReceiverOptions& options,
    size_t block_bytes, KvHelloAnswer* answer, OnLaneError on_error) {
  auto wire = std::make_unique<UcxWire>();
  const std::string host = HostId();
  const bool same_host = !host.empty() && host == hello.host_id;
  std::span<const std::byte> ring;
  absl::Status why;
  for (const std::string& offer : hello.lanes) {
    if (std::find(options.lanes.begin(), options.lanes.end(), offer) == options.lanes.end()) {
      continue;
    }
    if (offer == "shm") {
      absl::StatusOr<std::span<const std::byte>> made =
          absl::FailedPreconditionError("it is on another host");
      if (same_host) {
        made = MakeRing(workers, options.ring_bytes, block_bytes, answer, wire.get());
      }
      why = made.status();
      if (!why.ok()) continue;  // e.g. /dev/shm is full: the next lane may do
      ring = *made;
    }
    answer->lane = offer;
    break;
  }
  if (!why.ok() && !answer->lane.empty() && options.log != nullptr) {
    options.log->Log(same_host ? LogLevel::kWarning : LogLevel::kInfo, "KV peer has no shm lane",
                     {{"peer", hello.peer_name}, {"why", why.message()}});
  }
  if (answer->lane.empty()) {
    return absl::FailedPreconditionError(absl::StrCat(
        "lanes: offered [", absl::StrJoin(hello.lanes, ","), "] from host \"", hello.host_id,
        "\", allowed [", absl::StrJoin(options.lanes, ","), "] on host \"", host, "\"",
        why.ok() ? "" : absl::StrCat("; shm: ", std::string(why.message()))));
  }
  ASSIGN_OR_RETURN(wire->endpoint,
                   UcxEndpoint::Create(workers.tcp.get(), hello.ucx_address, std::move(on_error)));
  answer->ucx_address = workers.tcp->address();
  return std::make_unique<ReceiveLane>(answer->peer_token, std::move(wire), ring);
}

}  // namespace switchyard
