// model/experts.h: single experts, apart from the layers that host them: fetched ahead of a new
// placement, or let go by it.
#pragma once

#include <compare>
#include <cstdint>
#include <map>

#include "absl/status/statusor.h"
#include "kernels/grouped_gemm.h"

namespace switchyard {

struct ExpertKey {
  int layer = 0;       // an MoE layer
  int32_t expert = 0;  // logical
  friend auto operator<=>(const ExpertKey&, const ExpertKey&) = default;
};

// Packed for the model's kernels. A rank may hold an expert more than once.
using SpareExperts = std::multimap<ExpertKey, PackedExpert>;

inline size_t BytesOf(const PackedExpert& e) {
  return e.gate_up.bytes.size() + e.down.bytes.size();
}

// Where a model's experts come from, opened once for many of them. Thread-safe.
class ExpertSource {
 public:
  virtual ~ExpertSource() = default;
  // Reads one and packs it, on the calling thread. Errors name the tensor that is missing or wrong.
  virtual absl::StatusOr<PackedExpert> Load(const ExpertKey& key) const = 0;
};

}  // namespace switchyard
