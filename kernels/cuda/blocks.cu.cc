// XXH3 of long inputs: eight sums of 64 bits take a stripe of 64 bytes at a time, each with other
// words of a secret, and are scrambled after every 16. The stripes between two scrambles commute:
// each lane takes 16 bytes of two of them, and the warp adds up.
#include "kernels/cuda/blocks.h"

#include "kernels/cuda/device.h"

namespace switchyard::cuda {
namespace {

constexpr int kWarps = 4, kThreads = kWarps * kWarp;
constexpr int kStripe = 64, kStripes = 16;  // bytes; stripes between two scrambles
constexpr int kLaneBytes = 16, kParts = kStripe / kLaneBytes, kAtOnce = kWarp / kParts;
constexpr int kRounds = kStripes / kAtOnce;

// The specification's default secret, its odd numbers, and the words that the eight sums begin
// with.
struct Secret {
  uint64_t words[24];
};
constexpr Secret kSecret = {
    {0xbe4ba423396cfeb8, 0x1cad21f72c81017c, 0xdb979083e96dd4de, 0x1f67b3b7a4a44072,
     0x78e5c0cc4ee679cb, 0x2172ffcc7dd05a82, 0x8e2443f7744608b8, 0x4c263a81e69035e0,
     0xcb00c391bb52283c, 0xa32e531b8b65d088, 0x4ef90da297486471, 0xd8acdea946ef1938,
     0x3f349ce33f76faa8, 0x1d4f0bc7c7bbdcf9, 0x3159b4cd4be0518a, 0x647378d9c97e9fc8,
     0xc3ebd33483acc5ea, 0xeb6313faffa081c5, 0x49daf0b751dd0d17, 0x9e68d429265516d3,
     0xfca1477d58be162b, 0xce31d07ad1b8f88f, 0x280416958f3acb45, 0x7e404bbbcafbd7af}};
constexpr int kScrambleAt = 128, kLastAt = 121, kMergeAt = 11;  // bytes of the secret
constexpr uint64_t kPrime32 = 0x9e3779b1, kPrime64 = 0x9e3779b185ebca87;
struct Begin {
  uint64_t words[8];
};
constexpr Begin kBegin = {{0xc2b2ae3d, kPrime64, 0xc2b2ae3d27d4eb4f, 0x165667b19e3779f9,
                           0x85ebca77c2b2ae63, 0x85ebca77, 0x27d4eb2f165667c5, kPrime32}};

struct ChecksumArguments {
  const std::byte* blocks;
  int64_t block_bytes;
  int count;
  uint64_t* sums;
  Secret secret;  // in the arguments: every lane reads words of its own
  Begin begin;
};

// Two neighbours: of the sums, of the input, of the secret.
struct Pair {
  uint64_t words[2];
};

__device__ __forceinline__ Pair SecretAt(const Secret& s, int byte) {
  const int at = byte / 8, shift = byte % 8 * 8;
  if (shift == 0) return {{s.words[at], s.words[at + 1]}};
  return {{s.words[at] >> shift | s.words[at + 1] << (64 - shift),
           s.words[at + 1] >> shift | s.words[at + 2] << (64 - shift)}};
}

// kAligned: the address is a multiple of 16, else of 2.
template <bool kAligned>
__device__ __forceinline__ Pair LoadPair(const std::byte* from) {
  if (kAligned) {
    const uint4 v = *reinterpret_cast<const uint4*>(from);
    return {{v.x | uint64_t{v.y} << 32, v.z | uint64_t{v.w} << 32}};
  }
  const uint16_t* parts = reinterpret_cast<const uint16_t*>(from);
  Pair p = {};
  for (int i = 0; i < 8; ++i) p.words[i / 4] |= uint64_t{parts[i]} << (i % 4 * 16);
  return p;
}

__device__ __forceinline__ void Mix(const Pair& input, const Pair& secret, Pair& sums) {
  for (int i = 0; i < 2; ++i) {
    const uint64_t mixed = input.words[i] ^ secret.words[i];
    sums.words[i ^ 1] += input.words[i];
    sums.words[i] += (mixed & 0xffffffffu) * (mixed >> 32);
  }
}

// The halves of a product of 128 bits, xored.
__device__ __forceinline__ uint64_t Fold(uint64_t a, uint64_t b) {
#if defined(__CUDACC__)
  return a * b ^ __umul64hi(a, b);
#else
  const auto product = static_cast<unsigned __int128>(a) * b;
  return static_cast<uint64_t>(product) ^ static_cast<uint64_t>(product >> 64);
#endif
}

template <bool kAligned>
__global__ void __launch_bounds__(kThreads)
    ChecksumKernel(const __grid_constant__ ChecksumArguments a) {
  const int block = static_cast<int>(blockIdx.x) * kWarps + WarpIndex();
  if (block >= a.count) return;  // whole warps
  const std::byte* const input = a.blocks + block * a.block_bytes;
  // Which 16 bytes of a stripe, and of which stripes.
  const int part = Lane() % kParts, mine = Lane() / kParts;
  Pair secret[kRounds];
  for (int r = 0; r < kRounds; ++r) {
    secret[r] = SecretAt(a.secret, (r * kAtOnce + mine) * 8 + part * kLaneBytes);
  }
  const Pair scramble = SecretAt(a.secret, kScrambleAt + part * kLaneBytes);
  Pair sums = {{a.begin.words[2 * part], a.begin.words[2 * part + 1]}};
  const int64_t stripes = (a.block_bytes - 1) / kStripe;  // but for the last, of the last 64 bytes
  for (int64_t first = 0; first < stripes; first += kStripes) {
    Pair some = {};
    for (int r = 0; r < kRounds; ++r) {
      const int64_t stripe = first + r * kAtOnce + mine;
      if (stripe >= stripes) continue;
      Mix(LoadPair<kAligned>(input + stripe * kStripe + part * kLaneBytes), secret[r], some);
    }
    for (int i = 0; i < 2; ++i) {
      uint64_t& sum = some.words[i];
      for (int mask = kParts; mask < kWarp; mask *= 2) {
        sum += __shfl_xor_sync(kAllLanes, sum, mask);
      }
      sums.words[i] += sum;
      if (first + kStripes > stripes) continue;
      sums.words[i] = (sums.words[i] ^ sums.words[i] >> 47 ^ scramble.words[i]) * kPrime32;
    }
  }
  Mix(LoadPair<kAligned>(input + a.block_bytes - kStripe + part * kLaneBytes),
      SecretAt(a.secret, kLastAt + part * kLaneBytes), sums);
  const Pair merge = SecretAt(a.secret, kMergeAt + part * kLaneBytes);
  uint64_t sum = Fold(sums.words[0] ^ merge.words[0], sums.words[1] ^ merge.words[1]);
  for (int mask = 1; mask < kParts; mask *= 2) sum += __shfl_xor_sync(kAllLanes, sum, mask);
  sum += static_cast<uint64_t>(a.block_bytes) * kPrime64;
  sum = (sum ^ sum >> 37) * 0x165667919e3779f9;
  if (Lane() == 0) a.sums[block] = sum ^ sum >> 32;
}

constexpr int kClearThreads = 128;

template <typename T>
__global__ void __launch_bounds__(kClearThreads) ClearKernel(KvAddressing a, int first_row, T* kv) {
  const size_t head = blockIdx.x, row = static_cast<size_t>(first_row);
  const size_t rows = static_cast<size_t>(a.block_tokens) - row;
  T* const k = kv + a.k_offset + head * a.k_head_stride + row * a.k_token_stride;
  T* const v = kv + a.v_offset + head * a.v_head_stride + row * a.v_token_stride;
  for (size_t i = threadIdx.x; i < rows * a.k_token_stride; i += kClearThreads) Store(k + i, 0.0f);
  // Of MLA these are the same rows.
  for (size_t i = threadIdx.x; i < rows * a.v_token_stride; i += kClearThreads) Store(v + i, 0.0f);
}

}  // namespace

absl::Status BlockChecksums(Stream stream, const std::byte* blocks, int64_t block_bytes, int count,
                            uint64_t* sums) {
  SY_CHECK_MSG(block_bytes > kChecksumBytesOver && block_bytes % 2 == 0, "blocks of ", block_bytes,
               " bytes");
  const ChecksumArguments a{blocks, block_bytes, count, sums, kSecret, kBegin};
  const Grid grid{.x = Ceil(count, kWarps), .threads = kThreads};
  return block_bytes % kLaneBytes == 0
             ? Launch("BlockChecksums", ChecksumKernel<true>, grid, stream, a)
             : Launch("BlockChecksums", ChecksumKernel<false>, grid, stream, a);
}

absl::Status ClearRows(Stream stream, const KvAddressing& addressing, int kv_heads, int first_row,
                       std::byte* block) {
  const Grid grid{.x = kv_heads, .threads = kClearThreads};
  return addressing.dtype == DType::kFloat32
             ? Launch("ClearRows", ClearKernel<float>, grid, stream, addressing, first_row,
                      reinterpret_cast<float*>(block))
             : Launch("ClearRows", ClearKernel<Bf16>, grid, stream, addressing, first_row,
                      reinterpret_cast<Bf16*>(block));
}

}  // namespace switchyard::cuda
