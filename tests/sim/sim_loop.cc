#include "tests/sim/sim_loop.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_format.h"

namespace switchyard::sim {

void Loop::At(absl::Time t, std::function<void()> event) {
  heap_.push_back({std::max(t, now_), ++sequence_, std::move(event)});
  std::push_heap(heap_.begin(), heap_.end(), Later);
}

bool Loop::RunOne(absl::Time until) {
  if (heap_.empty() || heap_.front().at > until) {
    now_ = std::max(now_, until);
    return false;
  }
  std::pop_heap(heap_.begin(), heap_.end(), Later);
  Event event = std::move(heap_.back());
  heap_.pop_back();
  now_ = event.at;
  event.run();
  return true;
}

void Loop::AddToLog(const std::string& line) {
  absl::StrAppendFormat(&log_, "%12.6f %s\n", absl::ToDoubleSeconds(now_ - absl::UnixEpoch()),
                        line);
}

}  // namespace switchyard::sim
