#include "kernels/cuda/sample.h"

#include <cfloat>

#include "kernels/cuda/device.h"

namespace switchyard::cuda {
namespace {

constexpr int kThreads = 1024, kDigit = 256;

struct Shared {
  uint64_t scratch[3][kWarp];  // of BlockSum and BlockMax, in turn
  uint64_t mass[kDigit];       // of the digit that is looked at: counts or weights
  uint32_t count[kDigit];
  uint64_t cut, before, limit;  // what one thread found, for all
};

// As common/philox.h.
__device__ double Uniform(uint64_t key, uint64_t position, uint32_t sample) {
  uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
  uint32_t c0 = static_cast<uint32_t>(position), c1 = static_cast<uint32_t>(position >> 32),
           c2 = sample, c3 = 0;
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{0xD2511F53u} * c0, p1 = uint64_t{0xCD9E8D57u} * c2;
    c0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ k0;
    c1 = static_cast<uint32_t>(p1);
    c2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ k1;
    c3 = static_cast<uint32_t>(p0);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  const uint64_t bits = (uint64_t{c0} << 21) ^ (c1 >> 11);
  return static_cast<double>(bits) * 0x1.0p-53;
}

// One row of logits and what kernels/token_weights.h says of them: fixed point, 2^bits for the
// best. The last bit of e^x is this library's.
struct Row {
  const float* logits;
  int n;
  double highest, inverse_temperature;
  int bits;

  __device__ uint64_t Weight(int id) const {
    const double x = (static_cast<double>(logits[id]) - highest) * inverse_temperature;
    if (!(x > -64.0)) return 0;  // too small to count, or NaN
    return static_cast<uint64_t>(ldexp(exp(x), bits));
  }
  __device__ uint64_t Key(int id) const { return RankKey(logits[id], static_cast<uint32_t>(id)); }
};

// What may still be drawn: weight at least weight_min, key at least key_min.
struct Kept {
  double weight_min = 0;
  uint64_t key_min = 0;
  __device__ bool Has(uint64_t key, uint64_t weight) const {
    return key >= key_min && static_cast<double>(weight) >= weight_min;
  }
};

// Fills the histograms of digit `level` (0: the highest) over kept keys that begin as `prefix`.
__device__ void Histogram(const Row& row, const Kept& kept, int level, uint64_t prefix, bool weigh,
                          Shared& s) {
  __syncthreads();
  for (int d = static_cast<int>(threadIdx.x); d < kDigit; d += kThreads) {
    s.mass[d] = 0;
    s.count[d] = 0;
  }
  __syncthreads();
  const int shift = 56 - 8 * level;
  for (int id = static_cast<int>(threadIdx.x); id < row.n; id += kThreads) {
    const uint64_t key = row.Key(id);
    if (level > 0 && key >> (shift + 8) != prefix) continue;
    const uint64_t weight = row.Weight(id);
    if (!kept.Has(key, weight)) continue;
    const int digit = static_cast<int>(key >> shift & 255);
    atomicAdd(&s.count[digit], 1u);
    atomicAdd(reinterpret_cast<unsigned long long*>(&s.mass[digit]),
              static_cast<unsigned long long>(weigh ? weight : 1));
  }
  __syncthreads();
}

// The lowest key that stays when keys are taken in descending order while the mass before them (of
// weights, or of ones) is below `limit`; at least one is taken. 0 if nothing is kept.
__device__ uint64_t Cut(const Row& row, const Kept& kept, bool weigh, double limit, Shared& s) {
  uint64_t prefix = 0, before = 0;
  for (int level = 0; level < 8; ++level) {
    Histogram(row, kept, level, prefix, weigh, s);
    if (threadIdx.x == 0) {
      int chosen = -1;
      uint64_t mass = before, mass_before = before;
      for (int d = kDigit - 1; d >= 0; --d) {
        if (s.count[d] == 0) continue;
        if (chosen >= 0 && !(static_cast<double>(mass) < limit)) break;
        chosen = d;
        mass_before = mass;
        mass += s.mass[d];
      }
      s.cut = chosen < 0 ? 0 : (prefix << 8) | static_cast<uint64_t>(chosen);
      s.before = mass_before;
      s.limit = chosen < 0;  // nothing is kept
    }
    __syncthreads();
    prefix = s.cut;
    before = s.before;
    if (s.limit != 0) return 0;
  }
  return prefix;
}

__device__ uint64_t SumOfKept(const Row& row, const Kept& kept, uint64_t* scratch) {
  uint64_t sum = 0;
  for (int id = static_cast<int>(threadIdx.x); id < row.n; id += kThreads) {
    const uint64_t weight = row.Weight(id);
    if (kept.Has(row.Key(id), weight)) sum += weight;
  }
  __syncthreads();
  return BlockSum<kThreads>(sum, scratch);
}

// The token in id order in whose weight `left` falls; left < the sum of the kept.
__device__ int Pick(const Row& row, const Kept& kept, uint64_t left, Shared& s) {
  const int each = static_cast<int>(Ceil(row.n, kThreads));
  const int begin = static_cast<int>(threadIdx.x) * each;
  const int end = begin + each < row.n ? begin + each : row.n;
  uint64_t mine = 0;
  for (int id = begin; id < end; ++id) {
    const uint64_t weight = row.Weight(id);
    if (kept.Has(row.Key(id), weight)) mine += weight;
  }
  // Sums of the threads before this one: an inclusive scan of the warp, then of the warps.
  uint64_t upto = mine;
  for (int delta = 1; delta < kWarp; delta *= 2) {
    const uint64_t other = __shfl_up_sync(kAllLanes, upto, delta);
    if (Lane() >= delta) upto += other;
  }
  __syncthreads();
  if (Lane() == kWarp - 1) s.scratch[2][WarpIndex()] = upto;
  __syncthreads();
  uint64_t before = upto - mine;
  for (int w = 0; w < WarpIndex(); ++w) before += s.scratch[2][w];
  if (left >= before && left - before < mine) {
    uint64_t rest = left - before;
    for (int id = begin; id < end; ++id) {
      const uint64_t weight = row.Weight(id);
      if (!kept.Has(row.Key(id), weight)) continue;
      if (rest < weight) {
        s.cut = static_cast<uint64_t>(id);
        break;
      }
      rest -= weight;
    }
  }
  __syncthreads();
  return static_cast<int>(s.cut);
}

__device__ int BestOf(const float* logits, int n, uint64_t* scratch) {
  uint64_t best = 0;
  for (int id = static_cast<int>(threadIdx.x); id < n; id += kThreads) {
    const uint64_t key = RankKey(logits[id], static_cast<uint32_t>(id));
    if (key > best) best = key;
  }
  return static_cast<int>(IdOf(BlockMax<kThreads>(best, scratch)));
}

__global__ void __launch_bounds__(kThreads, 1)
    SampleKernel(DeviceMatrix<const float> logits, const RowSampling* params, int32_t* tokens) {
  Shared& s = *SharedMemory<Shared>();
  const RowSampling p = params[blockIdx.x];
  Row row{logits.data + blockIdx.x * logits.stride, logits.cols, 0, 0, 0};
  const int best = BestOf(row.logits, row.n, s.scratch[0]);
  int token = best;
  if (p.temperature > 0) {
    row.highest = row.logits[best];
    row.inverse_temperature = 1.0 / static_cast<double>(p.temperature);
    int width = 0;
    while (row.n >> width != 0) ++width;
    row.bits = 62 - width;
    Kept kept;
    kept.weight_min = static_cast<double>(p.min_p) * ldexp(1.0, row.bits);
    if (p.top_k > 0) kept.key_min = Cut(row, kept, false, p.top_k, s);
    if (p.top_p < 1.0f) {
      const uint64_t all = SumOfKept(row, kept, s.scratch[1]);
      kept.key_min =
          Cut(row, kept, true, static_cast<double>(p.top_p) * static_cast<double>(all), s);
    }
    __syncthreads();
    const uint64_t total = SumOfKept(row, kept, s.scratch[0]);
    if (total > 0) {  // else logits are not finite
      uint64_t left =
          static_cast<uint64_t>(Uniform(p.seed, p.position, p.sample) * static_cast<double>(total));
      left = left < total ? left : total - 1;
      token = Pick(row, kept, left, s);
    }
  }
  if (threadIdx.x == 0) tokens[blockIdx.x] = token;
}

__global__ void __launch_bounds__(kThreads, 1)
    ScoreKernel(DeviceMatrix<const float> logits, const int32_t* tokens, float* logprobs,
                int32_t* ranks) {
  Shared& s = *SharedMemory<Shared>();
  const float* row = logits.data + blockIdx.x * logits.stride;
  const double highest = row[BestOf(row, logits.cols, s.scratch[0])];
  const float mine = row[tokens[blockIdx.x]];
  double sum = 0;
  int above = 0;
  for (int id = static_cast<int>(threadIdx.x); id < logits.cols; id += kThreads) {
    // exp would take −∞ for a token that is merely unlikely.
    sum = sum + (fabsf(row[id]) <= FLT_MAX ? exp(row[id] - highest) : NAN);
    above += row[id] > mine;
  }
  sum = BlockSum<kThreads>(sum, reinterpret_cast<double*>(s.scratch[1]));
  above = BlockSum<kThreads>(above, reinterpret_cast<int*>(s.scratch[2]));
  if (threadIdx.x != 0) return;
  logprobs[blockIdx.x] = static_cast<float>((mine - highest) - log(sum));
  ranks[blockIdx.x] = 1 + above;
}

Grid RowGrid(DeviceMatrix<const float> logits) {
  SY_CHECK_MSG(logits.cols >= 1 && logits.cols <= 1 << 24, logits.cols, " tokens");
  return {.x = logits.rows, .threads = kThreads, .shared_bytes = sizeof(Shared)};
}

}  // namespace

absl::Status SampleTokens(Stream stream, DeviceMatrix<const float> logits,
                          const RowSampling* params, int32_t* tokens) {
  return Launch("SampleTokens", SampleKernel, RowGrid(logits), stream, logits, params, tokens);
}

absl::Status ScoreTokens(Stream stream, DeviceMatrix<const float> logits, const int32_t* tokens,
                         float* logprobs, int32_t* ranks) {
  return Launch("ScoreTokens", ScoreKernel, RowGrid(logits), stream, logits, tokens, logprobs,
                ranks);
}

}  // namespace switchyard::cuda
