#include "model/cuda/lane_choice.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "kernels/cuda/peer.h"

namespace switchyard::cuda {
namespace {

struct WireOffer {
  uint32_t version = 2, able = 0, trusts = 0;
  int32_t library = 0;
  char device[16] = {};
  char id[128] = {};
  char why[kWhyBytes] = {};   // ends with its first 0
  char host[kWhyBytes] = {};  // the same
};
static_assert(sizeof(WireOffer) == 360 && std::is_trivially_copyable_v<WireOffer>);

struct WirePeerOffer {
  uint32_t version = 1, ready = 0;
  uint64_t slot_bytes = 0;
  char window[64] = {};
  char why[kWhyBytes] = {};
  char padding[4] = {};
};
static_assert(sizeof(WirePeerOffer) == 184 && std::is_trivially_copyable_v<WirePeerOffer>);

void Put(const std::string& text, char (&to)[kWhyBytes]) {
  std::copy_n(text.begin(), std::min(text.size(), kWhyBytes), to);
}
std::string Text(const char (&from)[kWhyBytes]) { return {from, strnlen(from, kWhyBytes)}; }

template <typename Wire>
std::string Bytes(const Wire& wire) {
  return {reinterpret_cast<const char*>(&wire), sizeof wire};
}

template <typename Wire>
absl::StatusOr<Wire> Decode(const std::string& bytes, int rank) {
  Wire wire;
  if (bytes.size() != sizeof wire) {
    return absl::InvalidArgumentError(absl::StrCat("lane offer of rank ", rank, ": ", bytes.size(),
                                                   " bytes, wanted ", sizeof wire));
  }
  std::memcpy(&wire, bytes.data(), sizeof wire);
  if (wire.version != Wire().version) {
    return absl::InvalidArgumentError(absl::StrCat("lane offer of rank ", rank, ": version ",
                                                   wire.version, ", this rank speaks ",
                                                   Wire().version));
  }
  return wire;
}

// The first reason is told.
void Refuse(std::string* why, auto... words) {
  if (why->empty()) *why = absl::StrCat(words...);
}

// Why not by the library, and why not by peer memory.
struct Refusals {
  std::string library, peers;
};
using Present = std::pair<int, WireOffer>;  // rank
Refusals RefusalsOf(const std::vector<Present>& present, size_t world) {
  Refusals no;
  for (size_t i = 0; i < present.size(); ++i) {
    const auto& [rank, offer] = present[i];
    if (offer.trusts == 0) {
      for (std::string* why : {&no.library, &no.peers}) {
        Refuse(why, "rank ", rank, ": its lane broke twice although no rank was lost");
      }
    }
    if (offer.able == 0)
      Refuse(&no.library, "rank ", rank, ": ", absl::CHexEscape(Text(offer.why)));
    for (size_t j = 0; j < i; ++j) {
      const auto& [other, theirs] = present[j];
      if (std::equal(theirs.device, theirs.device + sizeof theirs.device, offer.device)) {
        Refuse(&no.library, "ranks ", other, " and ", rank, " share a device");
      }
      if (theirs.library != offer.library) {
        Refuse(&no.library, "ranks ", other, " and ", rank, " have versions ", theirs.library,
               " and ", offer.library, " of NCCL");
      }
      if (offer.host[0] == 0 || Text(theirs.host) != Text(offer.host)) {
        Refuse(&no.peers, "ranks ", other, " and ", rank, " do not share a machine");
      }
    }
  }
  const auto& [first, named] = present.front();
  if (std::all_of(std::begin(named.id), std::end(named.id), [](char c) { return c == 0; })) {
    Refuse(&no.library, "rank ", first, " named no communicator");
  }
  if (world > kPeersMax + 1) {
    Refuse(&no.peers, world, " ranks, at most ", kPeersMax + 1, " share memory");
  }
  return no;
}

}  // namespace

std::string EncodeLaneOffer(const LaneOffer& offer) {
  WireOffer wire;
  wire.able = offer.able;
  wire.trusts = offer.trusts;
  wire.library = offer.facts.library;
  std::copy(offer.facts.device.begin(), offer.facts.device.end(), wire.device);
  std::copy(offer.id.begin(), offer.id.end(), wire.id);
  Put(offer.why, wire.why);
  Put(offer.host, wire.host);
  return Bytes(wire);
}

absl::StatusOr<LaneChoice> ChooseLane(std::span<const std::string> offers, DeviceLane wanted) {
  LaneChoice choice;
  std::vector<Present> present;
  for (size_t r = 0; r < offers.size(); ++r) {
    choice.number.push_back(offers[r].empty() ? -1 : choice.ranks++);
    if (offers[r].empty()) continue;
    ASSIGN_OR_RETURN(const WireOffer offer, Decode<WireOffer>(offers[r], static_cast<int>(r)));
    present.emplace_back(static_cast<int>(r), offer);
  }
  if (present.empty()) return absl::InvalidArgumentError("no lane offers");
  const WireOffer& first = present.front().second;
  std::copy(std::begin(first.id), std::end(first.id), choice.id.begin());
  Refusals no;  // of one alone: it has nobody to send anything to
  if (choice.ranks > 1) no = RefusalsOf(present, offers.size());
  if (wanted != DeviceLane::kPeer && no.library.empty()) {
    choice.rows_go = RowsGo::kByLibrary;
  } else if (wanted != DeviceLane::kDirect && no.peers.empty()) {
    choice.rows_go = RowsGo::kByPeerMemory;
  }
  choice.why = wanted == DeviceLane::kPeer ? no.peers : no.library;
  if (wanted == DeviceLane::kAuto && !no.peers.empty() && no.peers != no.library) {
    absl::StrAppend(&choice.why, "; ", no.peers);
  }
  return choice;
}

std::string EncodePeerOffer(const PeerOffer& offer) {
  WirePeerOffer wire;
  wire.ready = offer.why.empty();
  wire.slot_bytes = offer.slot_bytes;
  std::copy(offer.window.begin(), offer.window.end(), wire.window);
  Put(offer.why, wire.why);
  return Bytes(wire);
}

absl::StatusOr<PeerAnswers> DecodePeerOffers(std::span<const std::string> offers) {
  PeerAnswers answers;
  answers.windows.resize(offers.size());
  std::optional<uint64_t> slot_bytes;
  for (size_t r = 0; r < offers.size(); ++r) {
    if (offers[r].empty()) continue;
    ASSIGN_OR_RETURN(const WirePeerOffer offer,
                     Decode<WirePeerOffer>(offers[r], static_cast<int>(r)));
    if (offer.ready == 0) {
      Refuse(&answers.why, "rank ", r, ": ", absl::CHexEscape(Text(offer.why)));
    }
    if (offer.slot_bytes != slot_bytes.value_or(offer.slot_bytes)) {
      Refuse(&answers.why, "rank ", r, " has slots of ", offer.slot_bytes, " bytes, others of ",
             *slot_bytes);
    }
    slot_bytes = offer.slot_bytes;
    std::copy(std::begin(offer.window), std::end(offer.window),
              answers.windows[r].emplace().begin());
  }
  return answers;
}

void LaneHistory::Begin(std::span<const uint64_t> incarnations) {
  const bool same = std::equal(incarnations.begin(), incarnations.end(), incarnations_.begin(),
                               incarnations_.end());
  if (std::exchange(broke_, false) && same) {
    ++breaks_;
  } else if (trusts()) {
    breaks_ = 0;
  }
  incarnations_.assign(incarnations.begin(), incarnations.end());
}

}  // namespace switchyard::cuda
