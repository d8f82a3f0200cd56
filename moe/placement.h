// moe/placement.h: where every replica of every expert lives, per layer: logical expert -> physical
// experts -> ranks, and back. Immutable, so that any thread may read it; a new placement is a new
// object under a new version, and a step sees one version only.
//
// Every rank has S slots per layer; physical expert p lives on rank p / S in slot p % S.
// Letters: L layers, E logical experts, S slots per rank, P = ranks · S physical experts.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "common/ids.h"
#include "common/tensor_view.h"

namespace switchyard {

struct Replica {
  ExpertId physical;
  RankId rank;
  friend bool operator==(const Replica&, const Replica&) = default;
};

class Placement {
 public:
  // In physical_to_logical: a slot without an expert, as a rank has that was lost or could not be
  // filled evenly.
  static constexpr int32_t kEmptySlot = -1;

  // physical_to_logical [L, P]; copied. Errors: kInvalidArgument if P is not a multiple of ranks,
  // an entry is no expert, or an expert has no replica; it names layer and slot or expert.
  static absl::StatusOr<Placement> Create(uint64_t version, int experts, int ranks,
                                          Matrix<const int32_t> physical_to_logical);
  // Every expert once, E / ranks consecutive ones per rank. kInvalidArgument if that has a rest.
  static absl::StatusOr<Placement> InOrder(uint64_t version, int layers, int experts, int ranks);

  // The same for the ranks that are `present` [ranks], under `version`: those that are not have
  // empty slots, and experts that only they had are dealt to the others, in new slots behind the
  // old ones, so that nothing that stays has to move. kInvalidArgument if nobody is present.
  absl::StatusOr<Placement> Without(uint64_t version, const std::vector<bool>& present) const;

  uint64_t version() const { return version_; }
  int layers() const { return layers_; }
  int experts() const { return experts_; }
  int ranks() const { return ranks_; }
  int slots_per_rank() const { return slots_per_rank_; }

  // All replicas of a logical expert, at least one, by physical id.
  std::span<const Replica> Replicas(int layer, int logical) const;
  // The replica that serves the token at `position` of its sequence. Position modulo replicas:
  // neighbours in a prompt spread evenly, and every rank computes the same answer.
  const Replica& Choose(int layer, int logical, int64_t position) const {
    const auto replicas = Replicas(layer, logical);
    return replicas[static_cast<uint64_t>(position) % replicas.size()];
  }
  // The logical expert in a slot, or kEmptySlot.
  int32_t Logical(int layer, ExpertId physical) const;
  // The logical experts that a rank hosts [S], kEmptySlot where none.
  std::span<const int32_t> Hosted(int layer, RankId rank) const;

  // Load of each rank [ranks], if each expert's load ([E]) is shared evenly by its replicas.
  std::vector<double> RankLoads(int layer, std::span<const double> expert_loads) const;

 private:
  Placement() = default;

  uint64_t version_ = 0;
  int layers_ = 0, experts_ = 0, ranks_ = 0, slots_per_rank_ = 0;
  std::vector<int32_t> logical_;   // [L, P]
  std::vector<Replica> replicas_;  // by layer, then expert, then physical id; no empty slots
  std::vector<size_t> offsets_;    // [L · E + 1] into replicas_
};

}  // namespace switchyard
