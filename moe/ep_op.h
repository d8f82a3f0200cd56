// moe/ep_op.h: one dispatch of EpDispatcher in flight, and its exchange. Private to its sources.
#pragma once

#include <vector>

#include "moe/ep_dispatcher.h"

namespace switchyard {

struct EpDispatcher::Op {
  struct Peer {
    bool plan_in = false;
    size_t rows_in = 0, entries_in = 0;  // of its dispatch, in their places
    size_t returned = 0;                 // of its combine, summed
    size_t row_of_frame = 0;             // of the combine frame at the ring's head
  };
  State state = State::kIdle;
  uint64_t id = 0;
  int layer = 0;
  bool low_latency = false, grouped = false;
  size_t tokens = 0;                                 // T
  Matrix<const float> hidden, expert_rows, weights;  // the caller's
  Matrix<float> sums;                                // as well
  std::vector<RankPlan> out, in;  // [N] to and from each rank; this rank's own in both
  std::vector<int32_t> rank_of;   // [T, K]
  Grouping grouping;
  std::vector<Peer> peers;  // [N]
  AlignedBuffer rows;       // [R, H] grows
  size_t summed = 0;        // of [T, K]
  bool done() const { return summed == rank_of.size(); }
  float* row(size_t i, size_t width) { return reinterpret_cast<float*>(rows.data()) + i * width; }
};

// The exchange under way, or the last one.
struct EpDispatcher::Rows {
  uint64_t id = 0;
  bool active = false;
  DType wire = DType::kFloat32;
  std::span<const Matrix<const float>> to;  // [tensor ranks], the caller's
  std::span<const Matrix<float>> from;      // as well
  std::vector<size_t> rows_in;              // of from[r]
};

}  // namespace switchyard
