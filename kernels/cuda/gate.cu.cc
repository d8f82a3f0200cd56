#include "kernels/cuda/gate.h"

#include "kernels/cuda/device.h"

namespace switchyard::cuda {
namespace {

constexpr int kLanes = kWarp;

__device__ void Score(const GateConfig& c, const float* logits, float* scores) {
  if (c.scoring == GateScoring::kSigmoid) {
    for (int e = Lane(); e < c.experts; e += kLanes) scores[e] = 1.0f / (1.0f + Exp(-logits[e]));
    return;
  }
  float highest = -INFINITY;
  for (int e = Lane(); e < c.experts; e += kLanes) {
    if (logits[e] > highest) highest = logits[e];
  }
  highest = WarpMax(highest);
  float sum = 0;
  for (int e = Lane(); e < c.experts; e += kLanes) {
    scores[e] = Exp(logits[e] - highest);
    sum = sum + scores[e];
  }
  sum = WarpSum(sum);
  for (int e = Lane(); e < c.experts; e += kLanes) scores[e] = scores[e] / sum;
}

// The best of v [n], ties to the lowest index; the same in all lanes. Chosen ones are marked in
// `taken`, a bit for each, so that a score of −∞ can still be chosen, as on the CPU.
__device__ int Best(const float* v, const uint32_t* taken, int n) {
  uint64_t best = 0;
  for (int i = Lane(); i < n; i += kLanes) {
    if (taken[i / 32] >> (i % 32) & 1) continue;
    const uint64_t key = RankKey(v[i], static_cast<uint32_t>(i));
    if (key > best) best = key;
  }
  return static_cast<int>(IdOf(WarpMax(best)));
}

__device__ void Clear(uint32_t* taken, int n) {
  for (int i = Lane(); i < (n + 31) / 32; i += kLanes) taken[i] = 0;
  __syncwarp();
}
__device__ void Take(uint32_t* taken, int i) {
  __syncwarp();
  if (Lane() == 0) taken[i / 32] |= 1u << (i % 32);
  __syncwarp();
}

__device__ float GroupScore(const float* group, int size, bool top2) {
  float first = -INFINITY, second = -INFINITY;
  for (int i = 0; i < size; ++i) {
    const float s = group[i];
    if (s > first) {
      second = first;
      first = s;
    } else if (s > second) {
      second = s;
    }
  }
  return top2 && size > 1 ? first + second : first;
}

__device__ void MaskGroups(const GateConfig& c, float* selection, float* groups, uint32_t* taken) {
  const int size = c.experts / c.groups;
  for (int g = Lane(); g < c.groups; g += kLanes) {
    groups[g] = GroupScore(selection + g * size, size, c.group_score_top2);
  }
  Clear(taken, c.groups);
  for (int i = 0; i < c.groups_chosen; ++i) Take(taken, Best(groups, taken, c.groups));
  for (int e = Lane(); e < c.experts; e += kLanes) {
    const int g = e / size;
    if (!(taken[g / 32] >> (g % 32) & 1)) selection[e] = -INFINITY;
  }
  __syncwarp();
}

__global__ void __launch_bounds__(kLanes)
    GateKernel(GateConfig c, DeviceMatrix<const float> logits, const float* bias, int32_t* experts,
               float* weights) {
  // scores [E], selection [E], groups [E], taken [E / 32]
  float* scores = SharedMemory<float>();
  float* selection = scores + c.experts;
  float* groups = selection + c.experts;
  uint32_t* taken = reinterpret_cast<uint32_t*>(groups + c.groups);
  Score(c, logits.data + blockIdx.x * logits.stride, scores);
  for (int e = Lane(); e < c.experts; e += kLanes) {
    selection[e] = scores[e] + (bias == nullptr ? 0.0f : bias[e]);
  }
  __syncwarp();
  if (c.groups_chosen < c.groups) MaskGroups(c, selection, groups, taken);
  Clear(taken, c.experts);
  int32_t* chosen = experts + static_cast<int64_t>(blockIdx.x) * c.top_k;
  float* given = weights + static_cast<int64_t>(blockIdx.x) * c.top_k;
  float sum = 0;
  for (int slot = 0; slot < c.top_k; ++slot) {
    const int best = Best(selection, taken, c.experts);
    Take(taken, best);
    sum = sum + scores[best];
    if (Lane() == 0) {
      chosen[slot] = best;
      given[slot] = scores[best];
    }
  }
  if (Lane() != 0) return;
  for (int slot = 0; slot < c.top_k; ++slot) {
    // 1e-20 is DeepSeek-V3's guard against sigmoid scores that are all zero.
    if (c.normalize) given[slot] = given[slot] / (sum + 1e-20f);
    given[slot] = given[slot] * c.scale;
  }
}

}  // namespace

absl::Status ChooseExperts(Stream stream, const GateConfig& c, DeviceMatrix<const float> logits,
                           const float* bias, int32_t* experts, float* weights) {
  SY_CHECK_MSG(c.experts >= 1 && c.experts <= kGateExpertsMax && c.groups >= 1 &&
                   c.experts % c.groups == 0 && logits.cols == c.experts,
               c.experts, " experts in ", c.groups, " groups");
  SY_CHECK_MSG(c.groups_chosen >= 1 && c.groups_chosen <= c.groups && c.top_k >= 1 &&
                   c.top_k <= c.experts / c.groups * c.groups_chosen,
               "top_k ", c.top_k, " of ", c.groups_chosen, " groups");
  const size_t words = 2 * static_cast<size_t>(c.experts) + c.groups + Ceil(c.experts, 32);
  return Launch("ChooseExperts", GateKernel,
                {.x = logits.rows, .threads = kLanes, .shared_bytes = words * sizeof(float)},
                stream, c, logits, bias, experts, weights);
}

}  // namespace switchyard::cuda
