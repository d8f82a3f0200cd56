#include "kernels/cuda/simt/wgmma.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <utility>
#include <vector>

#include "common/check.h"
#include "kernels/cuda/simt/simt.h"

namespace switchyard::simt {
namespace {

struct TensorCopy {
  uint64_t* barrier;
  void* to;
  TensorMap map;
  int column, row;
};
struct Product {
  float (*d)[64];
  uint64_t a, b;
  bool fp8, add;
};
// Under way in this block: copies of all threads, products by thread.
thread_local std::vector<TensorCopy> copies;
thread_local std::vector<std::pair<unsigned, Product>> products;

Mbarrier& At(uint64_t* barrier) {
  SharedOffset(barrier);
  return *reinterpret_cast<Mbarrier*>(barrier);
}

void Complete(Mbarrier& b) {
  if (b.pending != 0 || b.bytes != 0) return;
  b.phase ^= 1;
  b.pending = b.count;
}

void Land(const TensorCopy& c) {
  constexpr uint32_t kChunk = 16, kChunks = 8;  // bytes; in a row of 128
  auto* to = static_cast<std::byte*>(c.to);
  for (uint32_t r = 0; r < c.map.box_rows; ++r) {
    for (uint32_t chunk = 0; chunk < kChunks; ++chunk) {
      std::byte bytes[kChunk] = {};  // out of bounds: zeros
      const uint64_t row = static_cast<uint64_t>(c.row) + r,
                     end = c.map.columns * c.map.element_bytes;
      const uint64_t at = static_cast<uint64_t>(c.column) * c.map.element_bytes + chunk * kChunk;
      if (row < c.map.rows && at < end) {
        std::memcpy(bytes, static_cast<const std::byte*>(c.map.data) + row * c.map.stride + at,
                    std::min<uint64_t>(kChunk, end - at));
      }
      std::memcpy(to + r * 128 + ((chunk ^ r % 8) * kChunk), bytes, kChunk);
    }
  }
}

float E4m3(uint8_t v) {
  const int exponent = v >> 3 & 15, mantissa = v & 7;
  if ((v & 0x7f) == 0x7f) return std::numeric_limits<float>::quiet_NaN();
  const float magnitude = exponent == 0
                              ? std::ldexp(static_cast<float>(mantissa), -9)
                              : std::ldexp(static_cast<float>(8 + mantissa), exponent - 10);
  return v & 0x80 ? -magnitude : magnitude;
}

// Element (row, k) of a K-major operand with the 128-byte swizzle: 8 rows of 128 bytes make an
// atom, atoms are the stride offset apart; address bits 4…6 are xored with bits 7…9.
float Operand(uint64_t descriptor, int row, int k, bool fp8) {
  const uint32_t start = static_cast<uint32_t>(descriptor & 0x3fff) << 4;
  const uint32_t stride = static_cast<uint32_t>(descriptor >> 32 & 0x3fff) << 4;
  SY_CHECK_MSG(descriptor >> 62 == 1, "wgmma: a descriptor without the 128-byte swizzle");
  uint32_t address = start + static_cast<uint32_t>(row / 8) * stride +
                     static_cast<uint32_t>(row % 8) * 128 +
                     static_cast<uint32_t>(k) * (fp8 ? 1 : 2);
  address ^= (address >> 7 & 7) << 4;
  if (fp8) {
    static const std::vector<float> values = [] {
      std::vector<float> v;
      for (int i = 0; i < 256; ++i) v.push_back(E4m3(static_cast<uint8_t>(i)));
      return v;
    }();
    return values[static_cast<uint8_t>(Shared()[address])];
  }
  uint16_t bits;
  std::memcpy(&bits, Shared() + address, sizeof bits);
  return std::bit_cast<float>(uint32_t{bits} << 16);
}

// What this thread holds: 2 rows by 32 columns.
void Multiply(unsigned thread, const Product& p) {
  constexpr int kDepthMax = 32;
  const int depth = p.fp8 ? kDepthMax : kDepthMax / 2;
  const int row = static_cast<int>(thread / 32 % 4 * 16 + thread % 32 / 4);
  float left[2][kDepthMax];
  for (int i = 0; i < 2 * depth; ++i) {
    left[i / depth][i % depth] = Operand(p.a, row + i / depth * 8, i % depth, p.fp8);
  }
  for (int j = 0; j < 32; ++j) {
    const int column = j / 2 * 8 + static_cast<int>(thread % 4) * 2 + j % 2;
    float right[kDepthMax];
    for (int k = 0; k < depth; ++k) right[k] = Operand(p.b, column, k, p.fp8);
    for (int half = 0; half < 2; ++half) {
      float& sum = (*p.d)[j / 2 * 4 + half * 2 + j % 2];
      if (!p.add) sum = 0;
      for (int k = 0; k < depth; ++k) sum += left[half][k] * right[k];
    }
  }
}

}  // namespace

void InitMbarrier(uint64_t* barrier, unsigned count) {
  At(barrier) = {0, static_cast<uint8_t>(count), static_cast<uint8_t>(count), 0, 0};
}

void Arrive(uint64_t* barrier) {
  Mbarrier& b = At(barrier);
  SY_CHECK_MSG(b.pending > 0, "mbarrier: more arrivals than its count");
  --b.pending;
  Complete(b);
}

void ArriveExpecting(uint64_t* barrier, unsigned bytes) {
  At(barrier).bytes += static_cast<int32_t>(bytes);
  Arrive(barrier);
}

bool PhaseIsOver(uint64_t* barrier, unsigned parity) {
  for (size_t i = 0; i < copies.size();) {
    if (copies[i].barrier != barrier) {
      ++i;
      continue;
    }
    Land(copies[i]);
    At(barrier).bytes -= static_cast<int32_t>(copies[i].map.box_rows * 128);
    copies.erase(copies.begin() + static_cast<std::ptrdiff_t>(i));
    Complete(At(barrier));
  }
  return At(barrier).phase != parity;
}

void CopyBox(void* shared, const TensorMap& map, int column, int row, uint64_t* barrier) {
  SY_CHECK_MSG(SharedOffset(shared) % 1024 == 0, "a swizzled tile that is not 1,024-byte aligned");
  copies.push_back({barrier, shared, map, column, row});
}

void Wgmma(float (&d)[64], uint64_t a, uint64_t b, bool fp8, bool add) {
  products.push_back({Here().thread.x, {&d, a, b, fp8, add}});
}

void CommitWgmma() {
  const int nothing = 0;
  Exchange("wgmma.commit_group", &nothing, sizeof nothing);
}

void WaitWgmma() {
  const unsigned thread = Here().thread.x;
  for (size_t i = 0; i < products.size();) {
    if (products[i].first != thread) {
      ++i;
      continue;
    }
    Multiply(thread, products[i].second);
    products.erase(products.begin() + static_cast<std::ptrdiff_t>(i));
  }
}

}  // namespace switchyard::simt
