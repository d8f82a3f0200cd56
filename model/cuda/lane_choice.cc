#include "model/cuda/lane_choice.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"

namespace switchyard::cuda {
namespace {

struct WireOffer {
  uint32_t version = 1, able = 0;
  int32_t library = 0;
  char device[16] = {};
  char id[128] = {};
  char why[kWhyBytes] = {};  // ends with its first 0
};
static_assert(sizeof(WireOffer) == 256 && std::is_trivially_copyable_v<WireOffer>);

}  // namespace

std::string EncodeLaneOffer(const LaneOffer& offer) {
  WireOffer wire;
  wire.able = offer.able;
  wire.library = offer.facts.library;
  std::copy(offer.facts.device.begin(), offer.facts.device.end(), wire.device);
  std::copy(offer.id.begin(), offer.id.end(), wire.id);
  std::copy_n(offer.why.begin(), std::min(offer.why.size(), kWhyBytes), wire.why);
  std::string bytes(sizeof wire, '\0');
  std::memcpy(bytes.data(), &wire, sizeof wire);
  return bytes;
}

absl::StatusOr<LaneChoice> ChooseLane(std::span<const std::string> offers) {
  LaneChoice choice;
  const auto refuse = [&](auto... why) {
    if (choice.why.empty()) choice.why = absl::StrCat(why...);
  };
  std::vector<std::pair<int, WireOffer>> present;
  for (size_t r = 0; r < offers.size(); ++r) {
    choice.number.push_back(offers[r].empty() ? -1 : choice.ranks++);
    if (offers[r].empty()) continue;
    const int rank = static_cast<int>(r);
    WireOffer offer;
    if (offers[r].size() != sizeof offer) {
      return absl::InvalidArgumentError(absl::StrCat(
          "lane offer of rank ", rank, ": ", offers[r].size(), " bytes, wanted ", sizeof offer));
    }
    std::memcpy(&offer, offers[r].data(), sizeof offer);
    if (offer.version != WireOffer().version) {
      return absl::InvalidArgumentError(absl::StrCat("lane offer of rank ", rank, ": version ",
                                                     offer.version, ", this rank speaks ",
                                                     WireOffer().version));
    }
    if (offer.able == 0) {
      const absl::string_view why(offer.why, strnlen(offer.why, kWhyBytes));
      refuse("rank ", rank, ": ", absl::CHexEscape(why));
    }
    for (const auto& [other, theirs] : present) {
      if (std::equal(theirs.device, theirs.device + sizeof theirs.device, offer.device)) {
        refuse("ranks ", other, " and ", rank, " share a device");
      }
      if (theirs.library != offer.library) {
        refuse("ranks ", other, " and ", rank, " have versions ", theirs.library, " and ",
               offer.library, " of NCCL");
      }
    }
    present.emplace_back(rank, offer);
  }
  if (present.empty()) return absl::InvalidArgumentError("no lane offers");
  const WireOffer& first = present.front().second;
  std::copy(std::begin(first.id), std::end(first.id), choice.id.begin());
  if (choice.id == CommunicatorId{})
    refuse("rank ", present.front().first, " named no communicator");
  if (choice.ranks == 1) choice.why.clear();  // nobody to send anything to
  choice.direct = choice.why.empty();
  return choice;
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
