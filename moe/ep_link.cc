#include "moe/ep_link.h"

#include <bit>
#include <cstring>
#include <new>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/status_macros.h"

namespace switchyard {
namespace {

std::span<const std::byte> BytesOf(const EpLink::AmHeader& header) {
  return std::as_bytes(std::span(&header, 1));
}

absl::Status CheckRingBytes(uint64_t bytes) {
  if (bytes >= kEpRingBytesMin && bytes <= kEpRingBytesMax && std::has_single_bit(bytes)) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(absl::StrCat("ring_bytes is ", bytes,
                                                 ", must be a power of two from ", kEpRingBytesMin,
                                                 " to ", kEpRingBytesMax));
}

}  // namespace

absl::StatusOr<std::unique_ptr<EpLink>> EpLink::Create(const TransportWorkers& workers, int peer,
                                                       size_t ring_bytes, uint64_t token) {
  RETURN_IF_ERROR(CheckRingBytes(ring_bytes));
  std::unique_ptr<EpLink> link(new EpLink(peer, ring_bytes, token));
  std::byte* memory = nullptr;
  if (workers.posix != nullptr) {
    ASSIGN_OR_RETURN(link->segment_,
                     UcxMemory::Create(workers.posix_context.get(), kDataOffset + ring_bytes));
    memory = link->segment_->bytes().data();
  } else {
    link->in_memory_ = std::make_unique<std::byte[]>(kDataOffset + ring_bytes + kEpFrameAlign);
    const auto address = reinterpret_cast<uintptr_t>(link->in_memory_.get());
    memory = link->in_memory_.get() + (PaddedToEpFrame(address) - address);
  }
  link->in_ = new (memory) Counters{};
  link->in_->token = token;
  link->in_->magic = kMagic;
  link->in_data_ = memory + kDataOffset;
  return link;
}

void EpLink::FillHello(const TransportWorkers& workers, EpHello* hello) const {
  hello->ring_token = token_;
  hello->ring_bytes = in_bytes_;
  if (segment_ == nullptr) return;
  hello->ring_ucx_address = workers.posix->address();
  hello->ring_rkey = segment_->rkey();
  hello->ring_address = reinterpret_cast<uint64_t>(segment_->bytes().data());
}

absl::Status EpLink::Connect(const TransportWorkers& workers, const EpHello& hello, bool shm,
                             UcxEndpoint::OnError on_error) {
  SY_CHECK(endpoint_ == nullptr && hello.ring_bytes == in_bytes_);
  shm_ = shm;
  peer_token_ = hello.ring_token;
  out_bytes_ = hello.ring_bytes;
  writer_.emplace(out_bytes_);
  ASSIGN_OR_RETURN(endpoint_,
                   UcxEndpoint::Create(workers.tcp.get(), hello.ucx_address, std::move(on_error)));
  if (shm) {
    RETURN_IF_ERROR(MapRing(workers, hello));
  } else {
    staging_ = std::shared_ptr<std::byte[]>(new std::byte[out_bytes_]);
    out_data_ = staging_.get();
  }
  // Also makes UCX connect: without a message it would never notice that the peer dies.
  RingBell();
  return absl::OkStatus();
}

absl::Status EpLink::MapRing(const TransportWorkers& workers, const EpHello& hello) {
  ASSIGN_OR_RETURN(ring_endpoint_, UcxEndpoint::Create(workers.posix.get(), hello.ring_ucx_address,
                                                       [](const absl::Status&) {}));
  ASSIGN_OR_RETURN(mapping_, UcxMapping::Create(ring_endpoint_.get(), hello.ring_rkey,
                                                hello.ring_address, kDataOffset + out_bytes_));
  std::byte* memory = mapping_->bytes().data();
  out_ = reinterpret_cast<Counters*>(memory);
  // The key names a file descriptor of the peer. If that process is another one by now, what we
  // have mapped is not the ring: only its own words can say.
  if (out_->magic != kMagic || out_->token != hello.ring_token) {
    return absl::UnavailableError(
        absl::StrCat("rank ", peer_, ": the mapped memory is not its ring"));
  }
  out_data_ = memory + kDataOffset;
  return absl::OkStatus();
}

void EpLink::Fail(absl::Status why) {
  if (!status_.ok()) return;
  status_ = absl::UnavailableError(
      absl::StrCat("expert-parallel rank ", peer_, ": ", std::string(why.message())));
}

void EpLink::Break(absl::Status why) {
  broken_ = true;
  Fail(std::move(why));
}

void EpLink::Flush() {
  if (endpoint_ != nullptr) endpoint_->Close(/*flush=*/true);
}

std::byte* EpLink::Begin(size_t payload_bytes) {
  SY_CHECK(payload_bytes <= payload_max());
  if (shm_) {
    // The peer's word: never more than was written, never less than before.
    const absl::Status credited = writer_->Credit(out_->consumed.load(std::memory_order_seq_cst));
    if (!credited.ok()) Break(credited);
  }
  const uint64_t before = writer_->written();
  const auto position = writer_->Take(sizeof(EpFrameHeader) + PaddedToEpFrame(payload_bytes));
  if (!position) return nullptr;
  if (*position != before && shm_) {  // on tcp the receiver sees the gap
    const EpFrameHeader skip{.bytes = *position - before - sizeof(EpFrameHeader)};
    std::memcpy(out_data_ + before % out_bytes_, &skip, sizeof skip);
  }
  begun_ = *position;
  return out_data_ + begun_ % out_bytes_ + sizeof(EpFrameHeader);
}

void EpLink::Commit(const EpFrameHeader& header) {
  std::byte* frame = out_data_ + begun_ % out_bytes_;
  const uint64_t end = begun_ + sizeof header + PaddedToEpFrame(header.bytes);
  SY_CHECK(end == writer_->written());
  std::memcpy(frame, &header, sizeof header);
  if (shm_) {
    // Sequentially consistent, as is the look at `sleeping` after it: either we see that the peer
    // sleeps, or it sees the frame before it does.
    out_->written.store(end, std::memory_order_seq_cst);
    WakePeer(kForFrames);
    return;
  }
  const AmHeader am{peer_token_, begun_};
  endpoint_->Send(kFrameAm, BytesOf(am), {frame, static_cast<size_t>(end - begun_)},
                  [keep = staging_](const absl::Status&) {});  // a failure is the endpoint's
}

void EpLink::WakePeer(uint32_t what) {
  if ((out_->sleeping.load(std::memory_order_seq_cst) & what) != 0 &&
      out_->sleeping.exchange(0) != 0) {
    RingBell();
  }
}

void EpLink::RingBell() {
  const AmHeader am{peer_token_, 0};
  endpoint_->Send(kBellAm, BytesOf(am), {}, [](const absl::Status&) {});
}

const EpFrameHeader* EpLink::Peek() {
  if (peeked_) return &head_;
  for (;;) {
    const uint64_t written = in_->written.load(std::memory_order_seq_cst);
    if (written == read_ || broken_) return nullptr;
    const uint64_t offset = read_ % in_bytes_, there = written - read_;
    if (written % kEpFrameAlign == 0 && there <= in_bytes_) {
      std::memcpy(&head_, in_data_ + offset, sizeof head_);
      const uint64_t room = std::min<uint64_t>(there, in_bytes_ - offset) - sizeof head_;
      if (head_.magic == kEpFrameMagic && head_.bytes <= room) {
        if (head_.kind != EpFrameKind::kSkip) {
          payload_ = in_data_ + offset + sizeof head_;
          peeked_ = true;
          return &head_;
        }
        // Rings and frames are multiples of 64: a skip always has room for its header.
        read_ += sizeof head_ + PaddedToEpFrame(head_.bytes);
        continue;
      }
    }
    Break(absl::InternalError(absl::StrCat("a broken frame at ", read_, ", written ", written)));
    return nullptr;
  }
}

void EpLink::Pop() {
  SY_CHECK(peeked_);
  peeked_ = false;
  read_ += sizeof head_ + PaddedToEpFrame(head_.bytes);
  in_->consumed.store(read_, std::memory_order_seq_cst);
  if (shm_) return WakePeer(kForRoom);
  // Half of what the largest frame leaves free: the peer never waits for a credit that we keep.
  if (read_ - credited_ < in_bytes_ / 8) return;
  credited_ = read_;
  const AmHeader am{peer_token_, credited_};
  endpoint_->Send(kCreditAm, BytesOf(am), {}, [](const absl::Status&) {});
}

void EpLink::SetSleeping(uint32_t what) {
  if (shm_) in_->sleeping.store(what, std::memory_order_seq_cst);
}

void EpLink::OnFrame(uint64_t position, std::span<const std::byte> frame) {
  if (shm_ || broken_) return;
  const uint64_t written = in_->written.load(std::memory_order_relaxed);
  const uint64_t offset = position % in_bytes_, gap = position - written;
  const uint64_t used = written - in_->consumed.load(std::memory_order_relaxed);
  const bool skips = gap != 0;
  if ((skips && (offset != 0 || gap % kEpFrameAlign != 0 || gap >= in_bytes_)) || frame.empty() ||
      frame.size() % kEpFrameAlign != 0 || frame.size() > in_bytes_ - offset ||
      used + gap + frame.size() > in_bytes_) {
    return Break(absl::InternalError(absl::StrCat("a frame of ", frame.size(), " bytes at ",
                                                  position, ", written ", written, ", in use ",
                                                  used, " of ", in_bytes_)));
  }
  if (skips) {
    const EpFrameHeader skip{.bytes = gap - sizeof(EpFrameHeader)};
    std::memcpy(in_data_ + written % in_bytes_, &skip, sizeof skip);
  }
  std::memcpy(in_data_ + offset, frame.data(), frame.size());
  in_->written.store(position + frame.size(), std::memory_order_relaxed);
}

void EpLink::OnCredit(uint64_t position) {
  if (shm_ || !writer_) return;
  const absl::Status credited = writer_->Credit(position);
  if (!credited.ok()) Break(credited);
}

}  // namespace switchyard
