// EpDispatcher as RowExchange. Rows of an exchange wait in the same queues as those of dispatches:
// what a rank sends to another arrives in the order of its calls, so that whatever a rank waits for
// is never behind something that it cannot take yet.
#include <algorithm>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/status_macros.h"
#include "moe/ep_dispatcher.h"
#include "moe/ep_op.h"

namespace switchyard {

absl::Status EpDispatcher::Exchange(std::span<const Matrix<const float>> to,
                                    std::span<const Matrix<float>> from, DType wire) {
  const EpProgress::Hold hold(*progress_);
  RETURN_IF_ERROR(group_.status());
  const auto n = static_cast<size_t>(ranks());
  SY_CHECK(to.size() == n && from.size() == n);
  ExchangeState& x = *exchange_;
  ++x.id;
  x.wire = wire;
  x.to = to;
  x.from = from;
  x.rows_in.assign(n, 0);
  for (size_t r = 0; r < n; ++r) {
    if (static_cast<int>(r) == rank() || (to[r].rows() == 0 && from[r].rows() == 0)) continue;
    const size_t bytes = std::max(to[r].cols(), from[r].cols()) * SizeOf(wire);
    if (group_.link(first_mate() + static_cast<int>(r)) == nullptr ||
        bytes > group_.options().ring_bytes / 4 - kEpFrameAlign) {
      return absl::InvalidArgumentError(absl::StrCat("exchange with rank ", first_mate() + r,
                                                     ": it is absent, or rows of ", bytes,
                                                     " bytes are more than a frame holds"));
    }
    if (to[r].rows() > 0) queues_[first_mate() + r].push_back({.op = nullptr, .combine = false});
  }
  x.active = true;
  const absl::Time began = group_.clock().Now();
  const auto here = [&](size_t r) {
    return static_cast<int>(r) == rank() || x.rows_in[r] == from[r].rows();
  };
  const auto turn = [&] {
    Pump();
    for (size_t r = 0; r < n; ++r) {
      const auto& queue = queues_[first_mate() + r];
      const auto of_this = [](const Piece& p) { return p.op == nullptr; };
      if (!here(r) || std::any_of(queue.begin(), queue.end(), of_this)) return false;
    }
    return true;
  };
  const auto missing = [&] {
    std::string late;
    for (size_t r = 0; r < n; ++r) {
      if (!here(r)) absl::StrAppend(&late, " ", first_mate() + r);
    }
    return absl::StrCat("exchange ", x.id, ": not finished with rank(s)", late);
  };
  const absl::Status waited = group_.Wait(
      turn, [this](int peer) { return !queues_[peer].empty(); }, missing);
  x.active = false;
  waited_.exchange += group_.clock().Now() - began;
  return waited;
}

bool EpDispatcher::SendExchange(int peer, Piece& piece) {
  const ExchangeState& x = *exchange_;
  const Matrix<const float>& rows = x.to[peer - first_mate()];
  const RowCodec& codec = RowCodecOf(x.wire);
  const size_t row_bytes = rows.cols() * SizeOf(x.wire), most = RowsOfFrame(row_bytes);
  while (piece.next < rows.rows()) {
    const size_t count = std::min(most, rows.rows() - piece.next);
    std::byte* to = Begin(peer, count * row_bytes);
    if (to == nullptr) return false;
    for (size_t i = piece.next; i < piece.next + count; ++i, to += row_bytes) {
      codec.encode(rows.row(i), rows.cols(), to);
    }
    Commit(peer, EpFrameKind::kExchange, x.id, piece.next, count, 0, count * row_bytes);
    piece.next += count;
  }
  return true;
}

bool EpDispatcher::TakeExchange(int peer, const EpFrameHeader& frame) {
  ExchangeState& x = *exchange_;
  const int mate = peer - first_mate();
  const bool known = mate >= 0 && mate < ranks();
  // A mate that waited for nothing in this exchange may be in the next one.
  if (known && frame.op > x.id) return false;
  EpLink& link = *group_.link(peer);
  const bool expected = known && x.active && frame.op == x.id;
  const Matrix<float> to = expected ? x.from[mate] : Matrix<float>();
  const size_t row_bytes = to.cols() * SizeOf(x.wire), in = expected ? x.rows_in[mate] : 0;
  if (!expected || frame.first != in || frame.count == 0 || frame.count > to.rows() - in ||
      frame.bytes != frame.count * row_bytes) {
    link.Break(absl::InternalError(absl::StrCat(
        "rows ", frame.first, " + ", frame.count, " of exchange ", frame.op, " in ", frame.bytes,
        " bytes where row ", in, " of ", to.rows(), " of exchange ", x.id, " is wanted")));
    return false;
  }
  const std::byte* row = link.payload();
  for (size_t i = in; i < in + frame.count; ++i, row += row_bytes) {
    RowCodecOf(x.wire).decode(row, to.cols(), to.row(i));
  }
  x.rows_in[mate] += frame.count;
  link.Pop();
  return true;
}

}  // namespace switchyard
