#include "kvtransfer/transport.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <fstream>
#include <utility>

#ifdef __SSE2__
#include <emmintrin.h>
#endif

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/check.h"
#include "common/status_macros.h"

namespace switchyard {

// A frame between Stage and the end of its send: what UCX reads.
struct SendLane::Staged {
  std::array<std::byte, kFrameHeaderBytes> header;
  std::vector<std::byte> payload;  // entries, then blocks (tcp)
  size_t payload_bytes = 0;
  uint64_t transfer = 0;
  size_t blocks = 0;
};

std::string HostId() {
  std::ifstream file("/proc/sys/kernel/random/boot_id");
  std::string boot;
  char pid_namespace[64];
  ssize_t n = readlink("/proc/self/ns/pid", pid_namespace, sizeof pid_namespace);
  if (!(file >> boot) || n <= 0) return "";
  return absl::StrCat(boot, "/", std::string(pid_namespace, static_cast<size_t>(n)),
                      "/uid:", geteuid());
}

void CopyNonTemporal(std::byte* dst, const std::byte* src, size_t bytes) {
  size_t at = 0;
#ifdef __SSE2__
  // 16 bytes at a time fill a write-combining buffer as well as 64 do.
  SY_CHECK(reinterpret_cast<uintptr_t>(dst) % 16 == 0);
  for (; at + 64 <= bytes; at += 64) {
    const auto* from = reinterpret_cast<const __m128i*>(src + at);
    auto* to = reinterpret_cast<__m128i*>(dst + at);
    const __m128i a = _mm_loadu_si128(from), b = _mm_loadu_si128(from + 1),
                  c = _mm_loadu_si128(from + 2), d = _mm_loadu_si128(from + 3);
    _mm_stream_si128(to, a);
    _mm_stream_si128(to + 1, b);
    _mm_stream_si128(to + 2, c);
    _mm_stream_si128(to + 3, d);
  }
#endif
  std::memcpy(dst + at, src + at, bytes - at);
}

void FenceStores() {
#ifdef __SSE2__
  _mm_sfence();
#else
  __atomic_thread_fence(__ATOMIC_RELEASE);
#endif
}

absl::StatusOr<TransportWorkers> TransportWorkers::Create(const std::vector<std::string>& lanes,
                                                          const std::string& net_devices) {
  if (lanes.empty()) return absl::InvalidArgumentError("lanes: must name \"shm\" or \"tcp\"");
  TransportWorkers w;
  ASSIGN_OR_RETURN(w.tcp_context,
                   UcxContext::Create({.transport = "tcp", .net_devices = net_devices}));
  ASSIGN_OR_RETURN(w.tcp, UcxWorker::Create(w.tcp_context.get()));
  for (const std::string& lane : lanes) {
    if (lane == "shm" && w.posix == nullptr) {
      ASSIGN_OR_RETURN(w.posix_context,
                       UcxContext::Create({.transport = "posix", .net_devices = ""}));
      ASSIGN_OR_RETURN(w.posix, UcxWorker::Create(w.posix_context.get()));
    } else if (lane != "tcp") {
      return absl::InvalidArgumentError(
          absl::StrCat("lanes: \"", lane, "\", must be \"shm\" or \"tcp\", each once"));
    }
  }
  return w;
}

absl::StatusOr<std::shared_ptr<SendLane>> SendLane::Connect(const TransportWorkers& workers,
                                                            const KvHelloAnswer& answer,
                                                            const Options& options, OnSent on_sent,
                                                            UcxEndpoint::OnError on_error) {
  std::shared_ptr<SendLane> lane(new SendLane(options, std::move(on_sent)));
  lane->name_ = answer.lane;
  size_t per_block = options.block_bytes + kFrameEntryBytes;
  size_t frame_bytes = std::min(options.frame_bytes_max, options.in_flight_bytes_max);
  ASSIGN_OR_RETURN(lane->endpoint_,
                   UcxEndpoint::Create(workers.tcp.get(), answer.ucx_address, std::move(on_error)));
  if (answer.lane == "shm") {
    RETURN_IF_ERROR(lane->MapRing(workers.posix.get(), answer));
    // A quarter of the ring at most, so that both ends work at once.
    frame_bytes = std::min<size_t>(frame_bytes, lane->ring_bytes_.size() / 4);
    per_block = RingStride(options.block_bytes);
  } else if (answer.lane != "tcp") {
    return absl::InvalidArgumentError(absl::StrCat("lane is \"", answer.lane, "\", not known"));
  }
  lane->frame_blocks_max_ = std::clamp<size_t>(frame_bytes / per_block, 1, kFrameBlocksMax);
  return lane;
}

absl::Status SendLane::MapRing(UcxWorker* posix, const KvHelloAnswer& answer) {
  if (posix == nullptr) return absl::InvalidArgumentError("lane is \"shm\", which was not offered");
  const size_t stride = RingStride(options_.block_bytes);
  if (answer.ring_bytes < kRingDataOffset + 2 * stride) {
    return absl::InvalidArgumentError(absl::StrCat(
        "ring_bytes is ", answer.ring_bytes, ", must be at least ", kRingDataOffset + 2 * stride));
  }
  ASSIGN_OR_RETURN(ring_endpoint_,
                   UcxEndpoint::Create(posix, answer.ring_ucx_address, [](const absl::Status&) {}));
  ASSIGN_OR_RETURN(mapping_, UcxMapping::Create(ring_endpoint_.get(), answer.ring_rkey,
                                                answer.ring_address, answer.ring_bytes));
  // The key names a file descriptor of the receiver. Had it closed the segment since, the number
  // could mean another peer's by now: only what we have mapped can say whose it is.
  uint64_t owner[2];
  std::memcpy(owner, mapping_->bytes().data(), sizeof owner);
  if (owner[0] != kRingMagic || owner[1] != answer.peer_token) {
    return absl::UnavailableError("the mapped ring segment is not ours: say Hello again");
  }
  ring_bytes_ = mapping_->bytes().subspan(kRingDataOffset);
  ring_bytes_ = ring_bytes_.first(ring_bytes_.size() / kRingAlign * kRingAlign);
  ring_.emplace(ring_bytes_.size());
  return absl::OkStatus();
}

bool SendLane::HasRoom() const {
  if (ring_ && !ring_->HasRoom(frame_blocks_max_ * RingStride(options_.block_bytes))) return false;
  const size_t frame = frame_blocks_max_ * (kFrameEntryBytes + (ring_ ? 0 : options_.block_bytes));
  return in_flight_bytes_ == 0 || in_flight_bytes_ + frame <= options_.in_flight_bytes_max;
}

std::shared_ptr<SendLane::Staged> SendLane::Stage(SendFrame* frame, const KvStorage& kv) {
  std::shared_ptr<Staged> staged;
  if (spare_.empty()) {
    staged = std::make_shared<Staged>();
    staged->payload.resize(frame_blocks_max_ *
                           (kFrameEntryBytes + (ring_ ? 0 : options_.block_bytes)));
  } else {
    staged = std::move(spare_.back());
    spare_.pop_back();
  }
  const size_t n = frame->entries.size(), bytes = options_.block_bytes;
  const size_t stride = ring_ ? RingStride(bytes) : bytes;
  SY_CHECK(n > 0 && n <= frame_blocks_max_);
  FrameHeader header{.peer_token = frame->peer_token,
                     .session = frame->session,
                     .layer = static_cast<uint32_t>(frame->layer),
                     .block_bytes = static_cast<uint32_t>(bytes)};
  staged->payload_bytes = n * kFrameEntryBytes;
  std::byte* to = staged->payload.data() + staged->payload_bytes;
  if (ring_) {
    header.flags = kFrameInRing;
    std::optional<uint64_t> position = ring_->Take(n * stride);
    SY_CHECK(position);
    header.ring_position = *position;
    to = ring_bytes_.data() + *position % ring_bytes_.size();
  } else {
    staged->payload_bytes += n * bytes;
  }
  for (size_t i = 0; i < n; ++i, to += stride) {
    const std::byte* block = kv.Block(frame->layer, frame->blocks[i].value());
    // Hashed first: that brings the block into the cache, from where it is copied.
    frame->entries[i].checksum = BlockChecksum({block, bytes});
    if (ring_) {
      CopyNonTemporal(to, block, bytes);
    } else {
      std::memcpy(to, block, bytes);
    }
  }
  if (ring_) FenceStores();
  staged->header = EncodeFrame(header, frame->entries, staged->payload);
  staged->transfer = frame->transfer;
  staged->blocks = n;
  return staged;
}

void SendLane::Post(std::shared_ptr<Staged> staged) {
  in_flight_bytes_ += staged->payload_bytes;
  std::span<const std::byte> payload(staged->payload.data(), staged->payload_bytes);
  std::span<const std::byte> header = staged->header;
  endpoint_->Send(kFrameAm, header, payload,
                  [weak = weak_from_this(), staged = std::move(staged)](absl::Status status) {
                    std::shared_ptr<SendLane> lane = weak.lock();
                    if (lane == nullptr) return;
                    lane->in_flight_bytes_ -= staged->payload_bytes;
                    lane->spare_.push_back(staged);
                    lane->on_sent_(staged->transfer, staged->blocks, std::move(status));
                  });
}

absl::Status SendLane::OnCredit(const Credit& credit) {
  if (!ring_) return absl::InvalidArgumentError("credit: this lane has no ring");
  return ring_->Credit(credit.ring_position);
}

absl::StatusOr<std::unique_ptr<ReceiveLane>> ReceiveLane::Create(
    const TransportWorkers& workers, const KvHello& hello, const KvReceiverOptions& options,
    size_t block_bytes, KvHelloAnswer* answer, UcxEndpoint::OnError on_error) {
  std::unique_ptr<ReceiveLane> lane(new ReceiveLane());
  lane->peer_token_ = answer->peer_token;
  const std::string host = HostId();
  const bool same_host = !host.empty() && host == hello.host_id;
  absl::Status why;
  for (const std::string& offer : hello.lanes) {
    if (std::find(options.lanes.begin(), options.lanes.end(), offer) == options.lanes.end()) {
      continue;
    }
    if (offer == "shm") {
      if (!same_host) continue;
      why = lane->MakeRing(workers, options.ring_bytes, block_bytes, answer);
      if (!why.ok()) continue;  // e.g. /dev/shm is full: the next lane may do
    }
    answer->lane = offer;
    break;
  }
  if (answer->lane.empty()) {
    return absl::FailedPreconditionError(absl::StrCat(
        "lanes: offered [", absl::StrJoin(hello.lanes, ","), "] from host \"", hello.host_id,
        "\", allowed [", absl::StrJoin(options.lanes, ","), "] on host \"", host, "\"",
        why.ok() ? "" : absl::StrCat("; shm: ", std::string(why.message()))));
  }
  ASSIGN_OR_RETURN(lane->endpoint_,
                   UcxEndpoint::Create(workers.tcp.get(), hello.ucx_address, std::move(on_error)));
  answer->ucx_address = workers.tcp->address();
  return lane;
}

absl::Status ReceiveLane::MakeRing(const TransportWorkers& workers, size_t ring_bytes,
                                   size_t block_bytes, KvHelloAnswer* answer) {
  const size_t data_bytes = ring_bytes / kRingAlign * kRingAlign;
  if (data_bytes < 2 * RingStride(block_bytes)) {
    return absl::InvalidArgumentError(absl::StrCat("ring_bytes is ", ring_bytes,
                                                   ", must be at least two blocks of ",
                                                   RingStride(block_bytes)));
  }
  ASSIGN_OR_RETURN(segment_,
                   UcxMemory::Create(workers.posix_context.get(), kRingDataOffset + data_bytes));
  const uint64_t owner[2] = {kRingMagic, peer_token_};
  std::memcpy(segment_->bytes().data(), owner, sizeof owner);
  ring_.emplace(data_bytes);
  answer->ring_ucx_address = workers.posix->address();
  answer->ring_rkey = segment_->rkey();
  answer->ring_address = reinterpret_cast<uint64_t>(segment_->bytes().data());
  answer->ring_bytes = segment_->bytes().size();
  return absl::OkStatus();
}

absl::StatusOr<std::span<const std::byte>> ReceiveLane::RingFrame(uint64_t position,
                                                                  uint64_t bytes) {
  if (!ring_) return absl::InvalidArgumentError("frame: the peer has no ring");
  ASSIGN_OR_RETURN(const uint64_t offset, ring_->Accept(position, bytes));
  return segment_->bytes().subspan(kRingDataOffset + offset, bytes);
}

void ReceiveLane::SendCredit() {
  if (!owes_credit() || *credit_in_flight_) return;
  credited_ = ring_->consumed();
  *credit_in_flight_ = true;
  const auto message = EncodeCredit({peer_token_, credited_});
  // A failure is the endpoint's: its error callback tells the owner.
  endpoint_->Send(kCreditAm, message, {},
                  [flag = credit_in_flight_](const absl::Status&) { *flag = false; });
}

}  // namespace switchyard
