// model/cuda/lane_choice.h: whether the devices of a group move rows among themselves, decided by
// all ranks alike from what each says of itself when an epoch begins. Pure: no I/O.
//
//   epoch forms ─► every LaneOffer to every rank ─► ChooseLane ─┬► library: join, then rows
//        ▲                                                       ├► peers: windows, then rows
//        └── an error of a lane, or a lost rank ends the epoch   └► staged, with the reason
//
// Letters: N ranks.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "common/cuda/communicator.h"
#include "common/cuda/peer_memory.h"
#include "moe/ep_dispatcher.h"

namespace switchyard::cuda {

// What a rank says. All are of one size on the wire, as EpGroup::Gather wants.
struct LaneOffer {
  bool trusts = true;  // LaneHistory
  std::string host;    // HostId(), cut at kWhyBytes; empty: like no other
  bool able = false;   // to use the library
  std::string why;     // not; cut at kWhyBytes
  CommunicatorFacts facts;
  CommunicatorId id = {};  // of the first rank that is present; else 0
};
inline constexpr size_t kWhyBytes = 100;
std::string EncodeLaneOffer(const LaneOffer& offer);

enum class RowsGo { kStaged, kByLibrary, kByPeerMemory };
struct LaneChoice {
  RowsGo rows_go = RowsGo::kStaged;
  std::string why;          // staged, or not by the library
  int ranks = 0;            // that are present
  std::vector<int> number;  // [N] each rank's in the communicator; -1: absent
  CommunicatorId id = {};
};
// offers [N], encoded; an absent rank's is empty. The same bytes give the same choice everywhere.
// kInvalidArgument: an offer is none.
absl::StatusOr<LaneChoice> ChooseLane(std::span<const std::string> offers, DeviceLane wanted);

// Of peer memory, after that: each rank's window, then whether it could open all others.
struct PeerOffer {
  std::string why;  // not; cut at kWhyBytes; empty: it could
  uint64_t slot_bytes = 0;
  PeerHandle window = {};
};
std::string EncodePeerOffer(const PeerOffer& offer);
struct PeerAnswers {
  std::string why;                                 // not all could
  std::vector<std::optional<PeerHandle>> windows;  // [N] none of absent ranks
};
// As ChooseLane.
absl::StatusOr<PeerAnswers> DecodePeerOffers(std::span<const std::string> offers);

// Whether a rank still trusts direct lanes. One that breaks although nobody is lost would
// break for ever: after the second time among the same processes the rank offers none any more.
class LaneHistory {
 public:
  // An epoch begins among these processes [N].
  void Begin(std::span<const uint64_t> incarnations);
  // It ends because its lane failed: an error, or others did not come.
  void Broke() { broke_ = true; }
  bool trusts() const { return breaks_ < 2; }

 private:
  std::vector<uint64_t> incarnations_;
  bool broke_ = false;
  int breaks_ = 0;
};

}  // namespace switchyard::cuda
