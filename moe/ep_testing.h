// moe/ep_testing.h: what the tests of expert parallelism share: ranks as threads of this process,
// and a dispatch whose right answer the loopback dispatcher knows.
#pragma once

#include <functional>
#include <random>
#include <vector>

#include "common/bf16.h"
#include "moe/ep_dispatcher.h"
#include "moe/ep_group.h"
#include "moe/placement.h"

namespace switchyard::testing {

// The hellos of `world` ranks, as the group's owner would send them: through their bytes.
EpHello OnTheWire(const EpHello& hello);

// Runs body(group, rank) on one thread per rank, connected; groups end when all bodies have.
void RunRanks(int world, EpGroupOptions options,
              const std::function<void(EpGroup& group, int rank)>& body);

// Tokens of one rank for one dispatch.
struct Tokens {
  int top_k = 0, hidden = 0;
  std::vector<float> rows, weights;
  std::vector<int32_t> experts, positions;
  size_t count() const { return positions.size(); }
  Matrix<const float> h() const { return {rows.data(), {count(), static_cast<size_t>(hidden)}}; }
  Matrix<const float> w() const { return {weights.data(), {count(), static_cast<size_t>(top_k)}}; }
  Matrix<const int32_t> e() const {
    return {experts.data(), {count(), static_cast<size_t>(top_k)}};
  }
};
// Distinct experts per token, random all else.
Tokens RandomTokens(std::mt19937& rng, size_t count, int experts, int top_k, int hidden);

// A random placement of `experts` experts and `redundant` more replicas over `ranks` ranks.
Placement RandomPlacement(std::mt19937& rng, int layers, int experts, int redundant, int ranks);

// The "experts": e turns x into (e + 1) · x + e, in the type of the wire. [R, H]
struct Computed {
  std::vector<std::byte> bytes;
  Rows rows;  // view of it
};
Computed Compute(const Dispatcher& dispatcher, int layer, const DispatchedRows& in);
// One whole dispatch on `dispatcher`.
absl::StatusOr<std::vector<float>> Exchange(Dispatcher& dispatcher, int layer,
                                            const Tokens& tokens);
// One or two, overlapped as the executor does; between() is called while one waits for the other.
absl::StatusOr<std::vector<std::vector<float>>> ExchangeAll(Dispatcher& dispatcher, int layer,
                                                            std::span<const Tokens> batches,
                                                            const std::function<void()>& between);
// What it has to be: the same by a loopback dispatcher.
std::vector<float> Wanted(const Tokens& tokens, int experts, DType dtype, bool int8_tokens = false);

}  // namespace switchyard::testing
