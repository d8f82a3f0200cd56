#include "model/cuda/direct_lane.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/net/lanes.h"
#include "common/status_macros.h"

namespace switchyard::cuda {
namespace {
// Libraries look for each other's networks when ranks join.
constexpr absl::Duration kJoinMin = absl::Seconds(60);
}  // namespace

void DirectLane::End() {
  direct_ = by_peers_ = false;
  peers_.Close();
  communicator_ = Communicator();
}

LaneOffer DirectLane::Offer() {
  EpGroup& group = dispatcher_->group();
  LaneOffer offer;
  offer.trusts = history_.trusts();
  offer.host = HostId();
  const auto unable = [&](const absl::Status& why) {
    offer.able = false;
    offer.why = std::string(why.message());
    return offer;
  };
  const absl::StatusOr<CommunicatorFacts> facts = ReadCommunicatorFacts(device_index_);
  if (!facts.ok()) return unable(facts.status());
  offer.able = true;
  offer.facts = *facts;
  int first = 0;
  while (!group.present(first)) ++first;
  // NCCL waits in a thread of its own for those who join by the id: none is made in vain.
  const bool by_library = dispatcher_->device_lane() != DeviceLane::kPeer;
  if (first != group.rank() || !offer.trusts || !by_library) return offer;
  const absl::StatusOr<CommunicatorId> id = MakeCommunicatorId();
  if (!id.ok()) return unable(id.status());
  offer.id = *id;
  return offer;
}

absl::Status DirectLane::Begin(EpDispatcher& dispatcher, int device_index, size_t slot_bytes) {
  EpGroup& group = dispatcher.group();
  if (dispatcher_ == &dispatcher && epoch_ == group.epoch()) return absl::OkStatus();
  End();
  device_index_ = device_index;
  epoch_ = group.epoch();
  dispatcher_ = &dispatcher;
  const DeviceLane wanted = dispatcher.device_lane();
  if (wanted == DeviceLane::kStaged) {
    dispatcher.SetRowsTravel("through the host, as asked");
    return absl::OkStatus();
  }
  std::vector<uint64_t> incarnations;
  for (int r = 0; r < group.world(); ++r) incarnations.push_back(group.incarnation(r));
  history_.Begin(incarnations);
  ASSIGN_OR_RETURN(const std::vector<std::string> offers, group.Gather(EncodeLaneOffer(Offer())));
  ASSIGN_OR_RETURN(LaneChoice choice, ChooseLane(offers, wanted));
  if (choice.rows_go == RowsGo::kByPeerMemory && choice.ranks > 1) {
    ASSIGN_OR_RETURN(const std::string why, OpenPeers(slot_bytes));
    if (!why.empty()) {
      peers_.Close();
      choice.rows_go = RowsGo::kStaged;
      choice.why = choice.why.empty() ? why : absl::StrCat(choice.why, "; ", why);
    }
  }
  if (choice.rows_go == RowsGo::kStaged && wanted != DeviceLane::kAuto) {
    return absl::FailedPreconditionError(
        absl::StrCat("rows from device to device are asked for: ", choice.why));
  }
  return Join(choice);
}

absl::Status DirectLane::Join(const LaneChoice& choice) {
  EpGroup& group = dispatcher_->group();
  number_ = choice.number;
  by_peers_ = choice.rows_go == RowsGo::kByPeerMemory;
  if (choice.rows_go == RowsGo::kStaged) {
    dispatcher_->SetRowsTravel(absl::StrCat("through the host: ", choice.why));
    return absl::OkStatus();
  }
  if (choice.ranks > 1 && !by_peers_) {
    absl::StatusOr<Communicator> joined = Communicator::Join(
        choice.id, number_[group.rank()], choice.ranks, dispatcher_->device_ctas());
    if (!joined.ok()) return Fail(joined.status());
    communicator_ = *std::move(joined);
    RETURN_IF_ERROR(WaitFor([this] { return communicator_.Ready(); }, "joining of devices",
                            std::max(kJoinMin, group.options().wait_max)));
  }
  direct_ = true;
  dispatcher_->SetRowsTravel(
      absl::StrCat("from device to device", by_peers_ ? ", into each other's memory" : "",
                   by_peers_ && !choice.why.empty() ? ": " : "", by_peers_ ? choice.why : ""));
  return absl::OkStatus();
}

absl::StatusOr<std::string> DirectLane::OpenPeers(size_t slot_bytes) {
  EpGroup& group = dispatcher_->group();
  // All tell each other how far they are, so that all go on or none does.
  const auto tell = [&](const absl::Status& mine,
                        const PeerHandle& window) -> absl::StatusOr<PeerAnswers> {
    const PeerOffer offer{
        .why = std::string(mine.message()), .slot_bytes = slot_bytes, .window = window};
    ASSIGN_OR_RETURN(const std::vector<std::string> all, group.Gather(EncodePeerOffer(offer)));
    return DecodePeerOffers(all);
  };
  const absl::StatusOr<PeerHandle> mine =
      peers_.Prepare({.ranks = group.world(), .slot_bytes = slot_bytes});
  ASSIGN_OR_RETURN(PeerAnswers answers, tell(mine.status(), mine.value_or(PeerHandle())));
  if (!answers.why.empty()) return answers.why;
  answers.windows[group.rank()].reset();
  const absl::Status opened = peers_.Open(group.rank(), epoch_, answers.windows);
  ASSIGN_OR_RETURN(answers, tell(opened, PeerHandle()));
  return answers.why;
}

absl::Status DirectLane::Exchange(const std::byte* from, const BlockFirsts& from_first,
                                  std::byte* to, const BlockFirsts& to_first, size_t row_bytes,
                                  const OwnedStream& stream) {
  SY_CHECK(direct_);
  const int self = dispatcher_->group().rank();
  sends_.clear();
  receives_.clear();
  const auto add = [&](std::vector<Communicator::Block>* blocks, const BlockFirsts& first, size_t r,
                       const std::byte* rows) {
    const auto count = static_cast<size_t>(first[r + 1] - first[r]);
    if (count == 0) return;
    blocks->push_back({.rank = number_[r],
                       .data = const_cast<std::byte*>(rows) + first[r] * row_bytes,
                       .bytes = count * row_bytes});
  };
  for (size_t r = 0; r < number_.size(); ++r) {
    if (static_cast<int>(r) == self) continue;
    add(&sends_, from_first, r, from);
    add(&receives_, to_first, r, to);
  }
  const auto own = static_cast<size_t>(from_first[self + 1] - from_first[self]);
  RETURN_IF_ERROR(CopyAsync(to + to_first[self] * row_bytes, from + from_first[self] * row_bytes,
                            own * row_bytes, stream));
  if (sends_.empty() && receives_.empty()) return absl::OkStatus();
  for (const Communicator::Block& b : sends_) dispatcher_->CountSent(b.bytes);
  const absl::Duration wait_max = dispatcher_->group().options().wait_max;
  if (by_peers_) {
    return peers_.Exchange(from, from_first, to, to_first, row_bytes,
                           {.wait_max = wait_max, .ctas = dispatcher_->device_ctas()}, stream);
  }
  const absl::Status begun = communicator_.Exchange(sends_, receives_, stream);
  if (!begun.ok()) return Fail(begun);
  return WaitFor([this] { return communicator_.Ready(); }, "rows between devices", wait_max);
}

absl::Status DirectLane::Await(const Event& event) {
  const auto done = [&]() -> absl::StatusOr<bool> {
    ASSIGN_OR_RETURN(const bool is, Done(event));
    if (!is && communicator_) RETURN_IF_ERROR(communicator_.Ready().status());
    if (by_peers_) RETURN_IF_ERROR(peers_.status());  // work that is done may have given up
    return is;
  };
  return WaitFor(done, "work of devices", dispatcher_->group().options().wait_max);
}

absl::Status DirectLane::WaitFor(FunctionRef<absl::StatusOr<bool>()> done, const char* what,
                                 absl::Duration wait_max) {
  absl::Status failed;
  const auto look = [&] {
    const absl::StatusOr<bool> is = done();
    if (!is.ok()) failed = is.status();
    return !is.ok() || *is;
  };
  const absl::Status waited = dispatcher_->group().Poll(
      look, [what] { return absl::StrCat(what, ": not finished"); }, wait_max);
  if (absl::IsUnavailable(failed)) return Fail(failed);
  if (!failed.ok()) return failed;
  return waited.ok() ? waited : Fail(waited);
}

absl::Status DirectLane::Fail(const absl::Status& why) {
  EpGroup& group = dispatcher_->group();
  bool lost = false;
  for (int r = 0; r < group.world(); ++r) {
    lost = lost || (group.link(r) != nullptr && !group.link(r)->status().ok());
  }
  if (!lost) history_.Broke();
  group.Fail(absl::UnavailableError(absl::StrCat("rows between devices: ", why.message())));
  return group.status();
}

}  // namespace switchyard::cuda
