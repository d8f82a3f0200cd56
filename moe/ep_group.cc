#include "moe/ep_group.h"

#include <poll.h>
#include <sched.h>

#include <algorithm>
#include <cstring>
#include <thread>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/random_word.h"
#include "common/status_macros.h"

namespace switchyard {
namespace {

// Between two looks at UCX, which cost a system call each; a look at the rings costs a cache line.
constexpr int kLooksPerProgress = 32;
// A sleeper looks after its deadline so often at least.
constexpr absl::Duration kSleepMax = absl::Milliseconds(250);
constexpr absl::Duration kNap = absl::Microseconds(50);
// A layer of a decode step takes a device less: naps between would be most of it.
constexpr absl::Duration kEager = absl::Milliseconds(2);

}  // namespace

absl::StatusOr<std::unique_ptr<EpGroup>> EpGroup::Create(const EpGroupOptions& options,
                                                         const Clock* clock) {
  if (options.world < 1 || options.world > kEpRanksMax || options.rank < 0 ||
      options.rank >= options.world) {
    return absl::InvalidArgumentError(absl::StrCat("EP rank ", options.rank, " of ", options.world,
                                                   "; groups have 1 to ", kEpRanksMax, " ranks"));
  }
  std::unique_ptr<EpGroup> group(new EpGroup(options, clock));
  ASSIGN_OR_RETURN(group->workers_, TransportWorkers::Create(options.lanes, options.net_devices));
  for (int peer = 0; peer < options.world; ++peer) {
    std::unique_ptr<EpLink> link;
    if (peer != options.rank) {
      const uint64_t token = RandomWord() | 1;
      ASSIGN_OR_RETURN(link, EpLink::Create(group->workers_, peer, options.ring_bytes, token));
    }
    group->links_.push_back(std::move(link));
  }
  group->headers_.resize(options.world);
  group->incarnations_.resize(options.world);
  group->incarnations_[options.rank] = options.incarnation;
  group->SetHandlers();
  return group;
}

EpGroup::~EpGroup() {
  if (!status_.ok()) return;
  for (const auto& link : links_) {
    if (link != nullptr) link->Flush();
  }
}

void EpGroup::SetHandlers() {
  const auto handle = [this](unsigned id, void (EpLink::*act)(uint64_t)) {
    SY_CHECK(workers_.tcp
                 ->SetAmHandler(id,
                                [this, act](std::span<const std::byte> header, auto) {
                                  EpLink::AmHeader am;
                                  if (header.size() != sizeof am) return;
                                  std::memcpy(&am, header.data(), sizeof am);
                                  EpLink* link = LinkOf(am.token);
                                  if (link != nullptr) (link->*act)(am.position);
                                })
                 .ok());
  };
  handle(EpLink::kCreditAm, &EpLink::OnCredit);
  handle(EpLink::kBellAm, &EpLink::OnBell);
  SY_CHECK(workers_.tcp
               ->SetAmHandler(
                   EpLink::kFrameAm,
                   [this](std::span<const std::byte> header, std::span<const std::byte> frame) {
                     EpLink::AmHeader am;
                     if (header.size() != sizeof am) return;
                     std::memcpy(&am, header.data(), sizeof am);
                     EpLink* link = LinkOf(am.token);
                     if (link != nullptr) link->OnFrame(am.position, frame);
                   })
               .ok());
}

EpLink* EpGroup::LinkOf(uint64_t token) {
  for (const auto& link : links_) {
    if (link != nullptr && link->token() == token) return link.get();
  }
  return nullptr;  // of an epoch that is over
}

EpHello EpGroup::HelloFor(int peer) const {
  SY_CHECK(peer >= 0 && peer < world() && peer != rank());
  EpHello hello;
  hello.rank = rank();
  hello.world = world();
  hello.incarnation = options_.incarnation;
  hello.last_epoch = options_.last_epoch;
  hello.config = options_.config;
  hello.host_id = HostId();
  hello.lanes = options_.lanes;
  hello.ucx_address = workers_.tcp->address();
  links_[peer]->FillHello(workers_, &hello);
  return hello;
}

absl::Status EpGroup::Connect(std::span<const std::optional<EpHello>> hellos) {
  SY_CHECK(hellos.size() == static_cast<size_t>(world()) && epoch_ == 0);
  epoch_ = options_.last_epoch;
  for (int peer = 0; peer < world(); ++peer) {
    if (peer == rank()) continue;
    if (!hellos[peer]) {
      links_[peer].reset();
      continue;
    }
    const EpHello& hello = *hellos[peer];
    const EpHello mine = HelloFor(peer);
    RETURN_IF_ERROR(CheckEpHello(mine, peer, hello));
    epoch_ = std::max(epoch_, hello.last_epoch);
    incarnations_[peer] = hello.incarnation;
    const bool shm = SharesMemory(mine, hello);
    all_shm_ = all_shm_ && shm;
    EpLink* const link = links_[peer].get();
    const absl::Status connected = link->Connect(
        workers_, hello, shm, [link](absl::Status why) { link->Fail(std::move(why)); });
    // Whatever UCX calls it: the peer is not what it was when it said hello.
    if (!connected.ok()) {
      return absl::UnavailableError(
          absl::StrCat("expert-parallel rank ", peer, ": ", std::string(connected.message())));
    }
  }
  ++epoch_;
  // UCX spins while a connection is half open, which it is until both ends have looked after it.
  // Who has heard all bells says so by its header.
  const auto silent = [this] {
    return std::find_if(links_.begin(), links_.end(),
                        [](const auto& l) { return l != nullptr && !l->rung(); });
  };
  RETURN_IF_ERROR(Wait(
      [&] {
        Progress();
        return silent() == links_.end();
      },
      [](int) { return false; },
      [&] { return absl::StrCat("rank ", silent() - links_.begin(), " did not connect"); }));
  return OpenStep({}).status();
}

std::string EpGroup::DescribeLanes() const {
  std::string out;
  for (const auto& link : links_) {
    if (link == nullptr) continue;
    absl::StrAppend(&out, out.empty() ? "" : " ", link->peer(), link->shm() ? ":shm(" : ":tcp(",
                    link->DescribeLanes(), ")");
  }
  return out;
}

int EpGroup::present_ranks() const {
  return static_cast<int>(
      std::count_if(links_.begin(), links_.end(), [](const auto& l) { return l != nullptr; }) + 1);
}

void EpGroup::Fail(absl::Status why) {
  if (status_.ok()) status_ = std::move(why);
}

bool EpGroup::CheckLinks() {
  for (const auto& link : links_) {
    if (link != nullptr && !link->status().ok()) Fail(link->status());
  }
  return status_.ok();
}

bool EpGroup::Progress() {
  const bool happened = workers_.tcp->Progress();
  CheckLinks();
  return happened;
}

bool EpGroup::StepOpened() {
  while (status_.ok() && Progress()) {
  }
  if (!CheckLinks()) return true;
  for (const auto& link : links_) {
    if (link == nullptr) continue;
    const EpFrameHeader* frame = link->Peek();
    if (frame != nullptr && frame->kind == EpFrameKind::kStep) return true;
  }
  return !CheckLinks();
}

absl::Status EpGroup::AllGather(EpFrameKind kind, std::span<const std::byte> mine,
                                FunctionRef<bool(int, std::span<const std::byte>)> take,
                                absl::Duration wait_max) {
  std::vector<bool> sent(world()), got(world());
  for (int p = 0; p < world(); ++p) sent[p] = got[p] = link(p) == nullptr;
  const auto turn = [&] {
    for (int p = 0; p < world(); ++p) {
      if (link(p) == nullptr) continue;
      EpLink& l = *link(p);
      if (!sent[p]) {
        std::byte* to = l.Begin(mine.size());
        if (to != nullptr) {
          std::memcpy(to, mine.data(), mine.size());
          l.Commit({.kind = kind, .op = step_, .bytes = mine.size()});
          sent[p] = true;
        }
      }
      const EpFrameHeader* f = got[p] ? nullptr : l.Peek();
      if (f == nullptr) continue;
      if (f->kind != kind || f->op != step_ || !take(p, {l.payload(), f->bytes})) {
        l.Break(absl::InternalError(
            absl::StrCat("a frame of kind ", static_cast<int>(f->kind), ", number ", f->op, ", ",
                         f->bytes, " bytes, where one of kind ", static_cast<int>(kind),
                         " of step ", step_, " of epoch ", epoch_, " should come")));
        return false;
      }
      l.Pop();
      got[p] = true;
    }
    const auto all = [](const std::vector<bool>& v) {
      return std::find(v.begin(), v.end(), false) == v.end();
    };
    return all(sent) && all(got);
  };
  const auto missing = [&] {
    const auto it = std::find(got.begin(), got.end(), false);
    return absl::StrCat("step ", step_, ": rank ", it - got.begin(), " did not open it");
  };
  return WaitFor(
      turn, [&](int peer) { return !sent[peer]; }, missing, wait_max);
}

absl::StatusOr<std::span<const StepHeader>> EpGroup::OpenStep(StepHeader mine) {
  mine.epoch = epoch_;
  mine.step = ++step_;
  headers_.assign(world(), {});
  headers_[rank()] = mine;
  RETURN_IF_ERROR(AllGather(
      EpFrameKind::kStep, std::as_bytes(std::span(&mine, 1)),
      [&](int peer, std::span<const std::byte> payload) {
        StepHeader& header = headers_[peer];
        if (payload.size() != sizeof header) return false;
        std::memcpy(&header, payload.data(), sizeof header);
        return header.epoch == epoch_ && header.step == step_;
      },
      options_.wait_max));
  return headers_;
}

absl::StatusOr<std::vector<std::string>> EpGroup::Gather(const std::string& mine) {
  SY_CHECK(!mine.empty() && mine.size() <= gather_bytes_max());
  std::vector<std::string> all(world());
  all[rank()] = mine;
  RETURN_IF_ERROR(AllGather(
      EpFrameKind::kGather, std::as_bytes(std::span(mine)),
      [&](int peer, std::span<const std::byte> payload) {
        all[peer].assign(reinterpret_cast<const char*>(payload.data()), payload.size());
        return payload.size() == mine.size();
      },
      options_.wait_max));
  return all;
}

absl::Status EpGroup::Barrier(absl::Duration wait_max) {
  const std::byte here{};
  return AllGather(
      EpFrameKind::kGather, {&here, 1}, [](int, auto payload) { return payload.size() == 1; },
      wait_max);
}

void EpGroup::Sleep(int wake_fd, absl::Duration timeout) {
  SleepOnce([this] { return StepOpened(); }, [](int) { return false; }, wake_fd, timeout);
}

absl::Status EpGroup::Wait(FunctionRef<bool()> done, FunctionRef<bool(int peer)> wants_room,
                           FunctionRef<std::string()> missing) {
  return WaitFor(done, wants_room, missing, options_.wait_max);
}

absl::Status EpGroup::Poll(FunctionRef<bool()> done, FunctionRef<std::string()> missing,
                           absl::Duration wait_max) {
  const absl::Time naps_from = clock_.Now() + kEager;
  const auto nap = [&](absl::Duration longest) {
    if (clock_.Now() < naps_from) {
      sched_yield();
    } else {
      std::this_thread::sleep_for(absl::ToChronoMicroseconds(std::min(kNap, longest)));
    }
    Progress();
  };
  return LookUntil(done, nap, missing, wait_max);
}

absl::Status EpGroup::WaitFor(FunctionRef<bool()> done, FunctionRef<bool(int peer)> wants_room,
                              FunctionRef<std::string()> missing, absl::Duration wait_max) {
  const auto sleep = [&](absl::Duration longest) { SleepOnce(done, wants_room, -1, longest); };
  return LookUntil(done, sleep, missing, wait_max);
}

absl::Status EpGroup::LookUntil(FunctionRef<bool()> done, FunctionRef<void(absl::Duration)> idle,
                                FunctionRef<std::string()> missing, absl::Duration wait_max) {
  const absl::Time begin = clock_.Now();
  absl::Duration ask_at = options_.alive ? options_.alive_after : absl::InfiniteDuration();
  for (int turn = 0;; ++turn) {
    // A peer that was lost after it had sent all that we wait for is the next step's business.
    if (done()) return absl::OkStatus();
    if (!CheckLinks()) return status_;
    if (!all_shm_ || turn % kLooksPerProgress == kLooksPerProgress - 1) Progress();
    const absl::Duration waited = clock_.Now() - begin;
    if (waited < options_.spin) {
      sched_yield();  // to a rank that shares this core
      continue;
    }
    if (waited > ask_at) {
      AskWhoLives();
      ask_at = clock_.Now() - begin + options_.alive_after;
      continue;
    }
    if (waited > wait_max) {
      Fail(absl::UnavailableError(
          absl::StrCat("expert-parallel ", missing(), " within ", absl::FormatDuration(wait_max))));
      continue;
    }
    if (options_.on_wait) options_.on_wait();
    idle(std::min(ask_at, wait_max) - waited);
  }
}

void EpGroup::AskWhoLives() {
  for (const auto& link : links_) {
    if (link == nullptr || options_.alive(link->peer(), incarnations_[link->peer()])) continue;
    return link->Fail(absl::UnavailableError("does not answer"));  // one ends the epoch
  }
}

bool EpGroup::FallAsleep(FunctionRef<bool()> done, FunctionRef<bool(int)> wants_room) {
  for (const auto& link : links_) {
    if (link == nullptr) continue;
    link->SetSleeping(EpLink::kForFrames | (wants_room(link->peer()) ? EpLink::kForRoom : 0));
  }
  // Whoever writes a frame after this look sees that we sleep, and rings.
  if (done() || !CheckLinks() || Progress()) return false;
  const absl::StatusOr<bool> armed = workers_.tcp->Arm();
  if (!armed.ok()) Fail(armed.status());
  return armed.ok() && *armed;
}

void EpGroup::Awake() {
  for (const auto& link : links_) {
    if (link != nullptr) link->SetSleeping(0);
  }
}

void EpGroup::SleepOnce(FunctionRef<bool()> done, FunctionRef<bool(int)> wants_room, int wake_fd,
                        absl::Duration timeout) {
  if (FallAsleep(done, wants_room)) {
    pollfd fds[2] = {{event_fd(), POLLIN, 0}, {wake_fd, POLLIN, 0}};
    const absl::Duration nap = std::clamp(timeout, absl::ZeroDuration(), kSleepMax);
    poll(fds, wake_fd >= 0 ? 2 : 1, static_cast<int>(absl::ToInt64Milliseconds(nap)) + 1);
  }
  Awake();
}

}  // namespace switchyard
