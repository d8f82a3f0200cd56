// moe/ep_overlap.h: whether the rows of a step go as one micro-batch or as two, of which one
// computes while the other's rows travel. A state machine without I/O: all ranks feed it the same
// headers, from the epoch's first step on, and so agree without a word.
//
// What it weighs: two micro-batches hide the smaller of computation and wire behind the other, and
// read the weights twice, which costs as much again where memory bounds the step. Which of the two
// is more depends on link, machine, model and rows; so it is measured. Each header says how long
// the step before took. Steps are sorted by size (powers of two of the most rows of a rank); in
// each class both ways are tried in turn, then the faster one is kept, and the other is tried again
// from time to time.
#pragma once

#include <array>
#include <cstdint>
#include <span>

#include "moe/ep_wire.h"

namespace switchyard {

enum class EpOverlap : uint8_t { kAuto, kOn, kOff };

class OverlapPolicy {
 public:
  // Steps with fewer rows on every rank are not split: latency and weights are all they cost.
  static constexpr uint32_t kRowsMin = 32;

  explicit OverlapPolicy(EpOverlap mode) : mode_(mode) {}

  // To be called with the headers [N] of each step in turn, those without rows too. True: two
  // micro-batches.
  bool Split(std::span<const StepHeader> headers);

 private:
  // The steps of one size.
  struct Class {
    // The last ones that went one way, in 1/256 µs per row.
    struct Way {
      std::array<uint64_t, 5> costs = {};
      uint32_t count = 0;
      void Add(uint64_t cost) { costs[count++ % costs.size()] = cost; }
      uint64_t Median() const;
    };
    std::array<Way, 2> ways;  // whole, split
    bool split = false;       // the better way so far
    uint32_t to_probe = 0, probe_every = 0;
    bool Next();  // the way of the next step
  };

  const EpOverlap mode_;
  std::array<Class, 32> classes_;
  // The step whose time the next headers tell.
  Class* open_ = nullptr;
  bool open_split_ = false;
  uint32_t open_rows_ = 0;
};

}  // namespace switchyard
