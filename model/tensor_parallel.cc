#include "model/tensor_parallel.h"

#include <algorithm>
#include <array>
#include <vector>

#include "common/status_macros.h"
#include "model/stages.h"

namespace switchyard {

RowSlice SliceOf(size_t rows, int rank, int ranks) {
  const size_t begin = rows * rank / ranks, end = rows * (rank + 1) / ranks;
  return {begin, end - begin};
}

absl::Status GatherRows(RowExchange& ranks, Matrix<const float> mine, DType wire,
                        Matrix<float> all) {
  const int n = ranks.ranks();
  std::vector<Matrix<const float>> to(n, mine);
  std::vector<Matrix<float>> from;
  for (int r = 0; r < n; ++r) {
    const RowSlice s = SliceOf(all.rows(), r, n);
    from.push_back(all.Slice(s.begin, s.count));
  }
  std::copy_n(mine.data(), mine.rows() * mine.cols(), from[ranks.rank()].data());
  return ranks.Exchange(to, from, wire);
}

absl::Status SumRows(RowExchange& ranks, ComputePool& pool, Matrix<float> partial, float* parts,
                     Matrix<float>* mine) {
  const int n = ranks.ranks();
  const RowSlice own = SliceOf(partial.rows(), ranks.rank(), n);
  std::vector<Matrix<const float>> to;
  std::vector<Matrix<float>> from;
  for (int r = 0; r < n; ++r) {
    const RowSlice s = SliceOf(partial.rows(), r, n);
    to.push_back(partial.Slice(s.begin, s.count));
    if (r == ranks.rank()) {
      from.push_back(partial.Slice(own.begin, own.count));
      continue;
    }
    from.emplace_back(parts, std::array{own.count, partial.cols()});
    parts += own.count * partial.cols();
  }
  RETURN_IF_ERROR(ranks.Exchange(to, from, DType::kFloat32));
  // As ProjectGroups splits the groups of one rank: in the middle, all the way down.
  for (int apart = 1; apart < n; apart *= 2) {
    for (int r = 0; r < n; r += 2 * apart) AddRows(pool, from[r + apart], from[r]);
  }
  *mine = from[0];
  return absl::OkStatus();
}

absl::Status CollectRows(RowExchange& ranks, std::span<const size_t> counts, Matrix<float> rows) {
  const int n = ranks.ranks();
  std::vector<Matrix<const float>> to(n, Matrix<const float>(nullptr, {0, rows.cols()}));
  std::vector<Matrix<float>> from(n, Matrix<float>(nullptr, {0, rows.cols()}));
  if (ranks.rank() == 0) {
    size_t begin = 0;
    for (int r = 0; r < n; begin += counts[r++]) from[r] = rows.Slice(begin, counts[r]);
  } else {
    to[0] = rows;
  }
  return ranks.Exchange(to, from, DType::kFloat32);
}

}  // namespace switchyard
