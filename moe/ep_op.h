// moe/ep_op.h: one dispatch of EpDispatcher in flight, and its exchange. Private to its sources.
#pragma once

#include <vector>

#include "moe/ep_dispatcher.h"

namespace switchyard {

struct EpDispatcher::Op {
  struct Peer {
    bool plan_in = false;
    size_t first = 0, rows_in = 0;  // its tokens: where they begin in `rows`, how many are there
    size_t returned = 0;            // rows of its combine, summed
    size_t summed_entries = 0;      // of this rank itself, in a reduced combine
    size_t row_of_frame = 0;        // of the combine frame at the ring's head
  };
  State state = State::kIdle;
  uint64_t id = 0;
  int layer = 0;
  bool low_latency = false, grouped = false;
  bool plans_only = false;              // rows go another way
  size_t tokens = 0;                    // T
  Matrix<const float> hidden, weights;  // this and the next two are the caller's
  ConstRows expert_rows;
  Matrix<float> sums;
  std::vector<RankPlan> out, in;      // [N] to and from each rank; this rank's own in both
  std::vector<int32_t> rank_of;       // [T, K]
  std::vector<ReturningRow> reduced;  // the rows that return, if they do so reduced
  Grouping grouping;
  std::vector<Peer> peers;  // [N]
  AlignedBuffer rows;       // [P] tokens as on the wire, by source rank; grows
  size_t summed = 0;        // of what returns
  bool done() const { return summed == returns(); }
  size_t returns() const { return reduced.empty() ? rank_of.size() : reduced.size(); }
  ReturningRow Returning(size_t i, size_t top_k) const {
    if (!reduced.empty()) return reduced[i];
    return {static_cast<int32_t>(i / top_k), rank_of[i]};
  }
  size_t RowsOf(int peer) const { return plans_only ? 0 : in[peer].counts.size(); }
};

// The exchange under way, or the last one.
struct EpDispatcher::ExchangeState {
  uint64_t id = 0;
  bool active = false;
  DType wire = DType::kFloat32;
  std::span<const Matrix<const float>> to;  // [tensor ranks], the caller's
  std::span<const Matrix<float>> from;      // as well
  std::vector<size_t> rows_in;              // of from[r]
};

}  // namespace switchyard
