// engine/sequence.h: one request inside an engine: its tokens, and how far its KV has come.
#pragma once

#include <cstdint>
#include <vector>

#include "common/ids.h"
#include "engine/request.h"
#include "kvcache/prefix_index.h"

namespace switchyard {

// Owned by the Scheduler. The engine reads it and appends scores; only the scheduler moves it.
struct Sequence {
  enum class State {
    kWaiting,  // holds no blocks
    kAdopted,  // its KV came from elsewhere; holds blocks and waits for its turn to run
    kRunning,  // holds blocks for all tokens that it had on admission, and those it has grown by
    kHeld,     // prefill_only and finished: holds its blocks until Release
  };

  EngineRequest request;
  uint64_t arrival = 0;  // unique; kept over preemption, so that it goes back to its place
  State state = State::kWaiting;
  std::vector<TokenId> tokens;     // prompt_ids, generated_ids, then what was sampled here
  int given = 0;                   // tokens known on arrival: prompt_ids + generated_ids
  int length_max = 0;              // tokens at which it ends with kLength
  int computed = 0;                // tokens whose KV is in `blocks`
  int cached = 0;                  // of these, what was there when it was admitted
  int gave_way = 0;                // how often it was preempted for a newcomer
  std::vector<PrefixHash> hashes;  // [i] is of blocks [0, i]; as many as were needed so far
  std::vector<BlockId> blocks;     // the block table
  // With request.prompt_logprobs: entry i scores prompt_ids[i + 1]. Survives preemption.
  std::vector<SampledToken> prompt_scores;

  int length() const { return static_cast<int>(tokens.size()); }
  int prompt_length() const { return static_cast<int>(request.prompt_ids.size()); }
  int remaining() const { return length() - computed; }  // rows until the next token
  bool wants_prompt_scores() const {
    return request.prompt_logprobs >= 0 &&
           static_cast<int>(prompt_scores.size()) + 1 < prompt_length();
  }
};

}  // namespace switchyard
