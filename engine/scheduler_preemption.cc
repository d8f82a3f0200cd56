// Who gives way to whom: the scheduler's half that takes blocks and slots away.
#include <algorithm>

#include "common/check.h"
#include "engine/scheduler.h"

namespace switchyard {

void Scheduler::EndAll(FunctionRef<void(const Sequence&)> ended) {
  for (Queue* queue : {&running_, &adopted_, &waiting_}) {
    while (!queue->empty()) {
      Sequence& s = **queue->begin();
      ended(s);
      if (s.state == Sequence::State::kRunning) {
        Finish(s);
      } else {
        Erase(s);
      }
    }
  }
  ++kv_lost_;
  stalled_ = false;
}

Sequence* Scheduler::VictimBehind(const Sequence& sequence) const {
  Sequence* last = nullptr;
  for (const Queue* queue : {&running_, &adopted_}) {
    const auto it = std::find_if(queue->rbegin(), queue->rend(),
                                 [](const Sequence* s) { return !s->request.prefill_only; });
    if (it != queue->rend() && (last == nullptr || InOrder()(last, *it))) last = *it;
  }
  return last != nullptr && InOrder()(&sequence, last) ? last : nullptr;
}

std::vector<Sequence*> Scheduler::LessUrgent(int priority) const {
  std::vector<Sequence*> out;
  for (const Queue* queue : {&running_, &adopted_}) {
    for (auto it = queue->rbegin(); it != queue->rend() && (*it)->request.priority > priority;
         ++it) {
      if (!(*it)->request.prefill_only && (*it)->gave_way < kGiveWayMax) out.push_back(*it);
    }
  }
  std::sort(out.begin(), out.end(), [](auto* a, auto* b) { return InOrder()(b, a); });
  return out;
}

int Scheduler::Growing() const {
  return static_cast<int>(std::count_if(running_.begin(), running_.end(), [](const Sequence* s) {
    return !s->request.prefill_only;
  }));
}

bool Scheduler::GiveWay(int priority, int slots, int blocks, int growth) {
  slots -= FreeSlots();
  blocks -= pool_->counts().available();
  std::vector<Sequence*> victims;
  for (Sequence* s : LessUrgent(priority)) {
    if (slots <= 0 && blocks <= 0) break;
    const bool running = s->state == Sequence::State::kRunning;
    if (blocks <= 0 && !running) continue;  // has no slot to give
    victims.push_back(s);
    slots -= running;
    blocks -= running ? growth : 0;
    // What others use too stays where it is.
    blocks -= static_cast<int>(std::count_if(s->blocks.begin(), s->blocks.end(), [&](BlockId b) {
      return pool_->reference_count(b) == 1;
    }));
  }
  if (slots > 0 || blocks > 0) return false;
  for (Sequence* s : victims) {
    ++s->gave_way;
    Preempt(*s);
  }
  return true;
}

void Scheduler::Preempt(Sequence& s) {
  FreeBlocks(s);
  Move(s, Sequence::State::kWaiting);
  ++preemptions_;
}

void Scheduler::AdmitAdopted() {
  while (!adopted_.empty()) {
    Sequence& s = **adopted_.begin();
    if (FreeSlots() == 0 && !GiveWay(s.request.priority, 1, 0, 0)) return;
    Move(s, Sequence::State::kRunning);
  }
}

bool Scheduler::Untangle() {
  Sequence* const victim = adopted_.empty() ? nullptr : VictimBehind(**adopted_.begin());
  if (victim != nullptr) Preempt(*victim);
  return victim != nullptr;
}

void Scheduler::AdmitUrgent() {
  while (!waiting_.empty()) {
    Sequence& s = **waiting_.begin();
    const int priority = s.request.priority;
    const auto yields = [&](const Queue& queue) {
      return !queue.empty() && (*queue.rbegin())->request.priority > priority;
    };
    if (!yields(running_) && !yields(adopted_)) return;
    // The first time, what is there; then, what those left behind that have given way.
    for (const bool again : {false, true}) {
      const PrefixIndex::Hit hit = FindPrefix(s);
      if (SoonShared(s, hit.blocks)) return;
      // One block for each sequence that will grow stays free, or the newcomer would soon be
      // preempted.
      const int blocks = Wanted(s, hit) + Growing();
      if (FreeSlots() > 0 && pool_->counts().available() >= blocks) {
        Start(s, hit);
        break;
      }
      if (again || !GiveWay(priority, 1, blocks, /*growth=*/1)) return;
    }
  }
}

int Scheduler::Leasable(int priority) const {
  const Sequence* first = waiting_.empty() ? nullptr : *waiting_.begin();
  const bool yields = first == nullptr || first->request.priority > priority;
  return std::max(0, pool_->counts().available() - (yields ? 0 : BlocksFor(first->length())));
}

void Scheduler::MakeLeasable(int blocks, int priority) {
  const int taken = pool_->counts().available() - Leasable(priority);
  if (blocks > Leasable(priority)) (void)GiveWay(priority, 0, blocks + taken, 0);
}

}  // namespace switchyard
