// moe/ep_waits.h: where a rank of an expert-parallel group spends time that is not its own.
#pragma once

#include "absl/time/time.h"

namespace switchyard {

// Time in which a rank waited for rows of others: of dispatches, of combines, and of exchanges with
// its tensor neighbours.
struct EpWaits {
  absl::Duration dispatch, combine, exchange;

  absl::Duration total() const { return dispatch + combine + exchange; }
  EpWaits& operator+=(const EpWaits& o) {
    dispatch += o.dispatch;
    combine += o.combine;
    exchange += o.exchange;
    return *this;
  }
};

}  // namespace switchyard
