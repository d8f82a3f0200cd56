#include "kernels/cuda/simt/mma.h"

#include <bit>
#include <cstring>

#include "common/check.h"
#include "kernels/cuda/simt/simt.h"

namespace switchyard::simt {
namespace {

float Half(uint32_t pair, int which) {
  return std::bit_cast<float>(which == 0 ? pair << 16 : pair & 0xffff0000u);
}

}  // namespace

void MmaBf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  struct Fragments {
    uint32_t a[4], b[2];
  } mine{{a[0], a[1], a[2], a[3]}, {b0, b1}};
  const auto* all =
      reinterpret_cast<const Fragments*>(Exchange("mma.m16n8k16", &mine, sizeof mine));
  const int lane = static_cast<int>(Here().thread.x & 31);
  for (int i = 0; i < 4; ++i) {
    const int row = lane / 4 + (i >= 2 ? 8 : 0), column = lane % 4 * 2 + i % 2;
    float sum = d[i];
    for (int k = 0; k < 16; ++k) {
      // Row `row` of a is with lanes of g = row % 8; registers 1 and 3 are rows + 8, 2 and 3 are
      // columns + 8. Column `column` of b is with lanes of g = column.
      const int t = k % 8 / 2, upper = k >= 8;
      const float left = Half(all[row % 8 * 4 + t].a[(row >= 8) + 2 * upper], k % 2);
      const float right = Half(all[column * 4 + t].b[upper], k % 2);
      sum += left * right;
    }
    d[i] = sum;
  }
}

void LoadMatrices(uint32_t (&r)[4], const void* row, bool transposed) {
  SY_CHECK_MSG(SharedOffset(row) % 16 == 0, "ldmatrix: a row that is not 16-byte aligned");
  const auto* rows = reinterpret_cast<const void* const*>(
      Exchange(transposed ? "ldmatrix.trans" : "ldmatrix", &row, sizeof row));
  const int lane = static_cast<int>(Here().thread.x & 31);
  const int major = lane / 4, minor = lane % 4 * 2;
  for (int m = 0; m < 4; ++m) {
    uint16_t pair[2];
    for (int i = 0; i < 2; ++i) {
      const int at_row = transposed ? minor + i : major, at_column = transposed ? major : minor + i;
      std::memcpy(&pair[i], static_cast<const uint16_t*>(rows[m * 8 + at_row]) + at_column, 2);
    }
    r[m] = pair[0] | static_cast<uint32_t>(pair[1]) << 16;
  }
  // No lane goes on, and overwrites the rows, before all have read.
  const int nothing = 0;
  Exchange("ldmatrix: read", &nothing, sizeof nothing);
}

}  // namespace switchyard::simt
