// moe/ep_wire.h: what the ranks of an expert-parallel group say to each other: the hello that each
// sends to each before they are connected, and the frames in the rings between them
// (docs/expert-parallelism.md has pictures). All integers are little-endian.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace switchyard {

inline constexpr uint32_t kEpWireVersion = 4;
inline constexpr int kEpRanksMax = 256;
inline constexpr size_t kEpHelloBytesMax = 16 << 10;

// From one rank to one other: the ring differs from peer to peer.
struct EpHello {
  uint32_t wire_version = kEpWireVersion;
  int32_t rank = 0, world = 0;
  uint64_t incarnation = 0;  // of the rank's process
  uint64_t last_epoch = 0;   // the highest that the rank has been in; the next one is above all
  std::string config;        // equal on all ranks, or they would compute different things
  std::string host_id;       // HostId()
  std::vector<std::string> lanes;
  std::string ucx_address;  // of the TCP worker
  // The ring that the receiver of this hello writes and its sender reads.
  uint64_t ring_token = 0;  // random: names the ring in messages, and its owner in shared memory
  uint64_t ring_bytes = 0;  // of data
  std::string ring_ucx_address, ring_rkey;  // shm only
  uint64_t ring_address = 0;                // shm only
};

std::string EncodeEpHello(const EpHello& hello);
// kInvalidArgument names what is wrong: size, version, lengths.
absl::StatusOr<EpHello> DecodeEpHello(std::string_view bytes);

// Whether the rings between the two are in shared memory: both ends decide by the same facts.
bool SharesMemory(const EpHello& mine, const EpHello& theirs);
// Whether `theirs`, which rank `peer` sent, can be in a group with `mine`. Else names what differs,
// with both values: kInvalidArgument for rank and world, kFailedPrecondition for config, ring_bytes
// and lanes.
absl::Status CheckEpHello(const EpHello& mine, int peer, const EpHello& theirs);

// Every step opens with an all-gather of these. Whatever changes which calls are made is a pure
// function of them, so that ranks cannot disagree.
struct StepHeader {
  uint64_t epoch = 0;
  uint64_t step = 0;       // from 1 in each epoch
  uint64_t placement = 0;  // version that the step uses: the same on all ranks
  uint64_t ready = 0;      // digest of the next placement, once its experts are here; 0: none is
  uint32_t rows = 0;       // of this rank in this step
  uint32_t wants = 0;      // kWants…
  uint32_t micros = 0;     // what the last step that had rows took on this rank; 0: none yet
  // Of the batch that this rank shares with its tensor group, in int32 words; 0: no batch.
  uint32_t batch_words = 0;
  friend bool operator==(const StepHeader&, const StepHeader&) = default;
};
inline constexpr uint32_t kWantsToLeave = 1;  // the rank drains: it opens no step of its own
inline constexpr uint32_t kWantsToMeet = 2;   // another rank is there: all form a new epoch with it
// Rebalancing (moe/rebalancer.h).
inline constexpr uint32_t kWantsToBalance = 4;  // tell each other your loads
inline constexpr uint32_t kBalances = 8;        // the rank has not ended the last round
inline constexpr uint32_t kGivesUp = 16;        // and will not be ready

enum class EpFrameKind : uint32_t {
  kSkip = 1,  // the rest of the ring's memory: the next frame is at its start
  kStep,      // payload: StepHeader
  kGather,    // payload: this rank's part of EpGroup::Gather
  kPlan,      // which tokens come, and for which experts (moe/ep_plan.h)
  kPlanRows,  // the same, and all the rows
  kRows,      // rows [first, first + count) of the plan
  kCombine,   // expert outputs [first, first + count), in the order of the plan's entries
  kExchange,  // rows [first, first + count) of RowExchange::Exchange number `op`
};

inline constexpr uint32_t kEpFrameMagic = 0x50455953;  // "SYEP"
inline constexpr size_t kEpFrameAlign = 64;

// In front of each frame's payload. Frames are multiples of 64 bytes.
struct EpFrameHeader {
  uint32_t magic = kEpFrameMagic;
  EpFrameKind kind = EpFrameKind::kSkip;
  uint64_t op = 0;  // step, or dispatch, each from the epoch's begin
  uint32_t first = 0, count = 0;
  uint32_t entries = 0;  // of a plan
  uint32_t reserved = 0;
  uint64_t bytes = 0;  // of payload, without padding
  uint64_t unused[3] = {};
};
static_assert(sizeof(EpFrameHeader) == kEpFrameAlign);

constexpr size_t PaddedToEpFrame(size_t bytes) {
  return (bytes + kEpFrameAlign - 1) / kEpFrameAlign * kEpFrameAlign;
}

}  // namespace switchyard
