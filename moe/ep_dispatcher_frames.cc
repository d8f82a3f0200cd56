// The frames of EpDispatcher: what goes into the rings, and what comes out of them.
#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "moe/ep_dispatcher.h"
#include "moe/ep_op.h"

namespace switchyard {
namespace {

// Outputs that return lie apart from each other: hardware prefetches what follows a row's begin,
// but cannot guess where the next one begins.
void Announce(const std::byte* row) {
  for (size_t line = 0; line < 4; ++line) __builtin_prefetch(row + line * kEpFrameAlign);
}

}  // namespace

bool EpDispatcher::Pump() {
  bool any = false;
  for (bool moved = true; moved && !progress_->wanted(); any |= moved) {
    moved = false;
    for (int p = 0; p < group_.world(); ++p) {
      if (group_.link(p) == nullptr) continue;
      std::deque<Piece>& queue = queues_[p];
      for (; !queue.empty() && SendPiece(p, queue.front()); moved = true) queue.pop_front();
      moved |= TakeFrame(p);
    }
    // What returns lies in the rings in the order of the dispatches.
    for (const uint64_t id : {next_id_, next_id_ + 1}) {
      if (at(id).state == State::kReturned) moved |= SumReturned(at(id));
    }
  }
  return any;
}

bool EpDispatcher::Sent(const Op& op) const {
  return std::all_of(queues_.begin(), queues_.end(), [&](const std::deque<Piece>& queue) {
    return std::none_of(queue.begin(), queue.end(), [&](const Piece& p) { return p.op == &op; });
  });
}

std::byte* EpDispatcher::Begin(int peer, size_t bytes) { return group_.link(peer)->Begin(bytes); }

void EpDispatcher::Commit(int peer, EpFrameKind kind, uint64_t op, size_t first, size_t count,
                          size_t entries, size_t bytes) {
  EpFrameHeader header;
  header.kind = kind;
  header.op = op;
  header.first = static_cast<uint32_t>(first);
  header.count = static_cast<uint32_t>(count);
  header.entries = static_cast<uint32_t>(entries);
  header.bytes = bytes;
  group_.link(peer)->Commit(header);
  bytes_sent_ += bytes;
}

bool EpDispatcher::SendPiece(int peer, Piece& piece) {
  if (piece.op == nullptr) return SendExchange(peer, piece);
  return piece.combine ? SendCombine(peer, piece) : SendDispatch(peer, piece);
}

bool EpDispatcher::SendDispatch(int peer, Piece& piece) {
  Op& op = *piece.op;
  const RankPlan& plan = op.out[peer];
  const size_t width = options_.hidden, tokens = plan.tokens.size();
  const auto encode = [&](size_t first, size_t count, std::byte* to) {
    for (size_t i = first; i < first + count; ++i, to += token_bytes_) {
      tokens_.send(op.hidden.row(plan.tokens[i]), width, to);
    }
  };
  if (!piece.plan_sent) {
    const size_t plan_bytes = PlanBytes(tokens, plan.slots.size(), options_.reduced);
    const size_t rows_at = PaddedToEpFrame(plan_bytes);
    const size_t bytes = op.low_latency ? rows_at + tokens * token_bytes_ : plan_bytes;
    std::byte* const to = Begin(peer, bytes);
    if (to == nullptr) return false;
    WritePlan(plan, to);
    if (op.low_latency) {
      encode(0, tokens, to + rows_at);
      piece.next = tokens;
    }
    Commit(peer, op.low_latency ? EpFrameKind::kPlanRows : EpFrameKind::kPlan, op.id, 0, tokens,
           plan.slots.size(), bytes);
    piece.plan_sent = true;
  }
  while (!op.plans_only && piece.next < tokens) {
    const size_t count = std::min(frame_tokens_, tokens - piece.next);
    std::byte* const to = Begin(peer, count * token_bytes_);
    if (to == nullptr) return false;
    encode(piece.next, count, to);
    Commit(peer, EpFrameKind::kRows, op.id, piece.next, count, 0, count * token_bytes_);
    piece.next += count;
  }
  return true;
}

bool EpDispatcher::SendCombine(int peer, Piece& piece) {
  const Op& op = *piece.op;
  const size_t rows = ReturnsOf(op.in[peer]);
  while (piece.next < rows) {
    const size_t count = std::min(frame_rows_, rows - piece.next);
    std::byte* to = Begin(peer, count * row_bytes_);
    if (to == nullptr) return false;
    for (size_t i = piece.next; i < piece.next + count; ++i, to += row_bytes_) {
      OutputRow(op, peer, i, &piece.next_entry, to);
    }
    Commit(peer, EpFrameKind::kCombine, op.id, piece.next, count, 0, count * row_bytes_);
    piece.next += count;
  }
  return true;
}

void EpDispatcher::OutputRow(const Op& op, int peer, size_t row, size_t* entry, std::byte* to) {
  const std::vector<int32_t>& rows = op.grouping.rows[peer];
  if (!options_.reduced) {
    if (row + 1 < rows.size()) Announce(op.expert_rows.row(rows[row + 1]));
    std::memcpy(to, op.expert_rows.row(rows[row]), row_bytes_);
    return;
  }
  const RankPlan& plan = op.in[peer];
  for (int n = 0; n < plan.counts[row]; ++n, ++*entry) {
    const std::byte* const output = op.expert_rows.row(rows[*entry]);
    wire_.sum(n > 0, &plan.weights[*entry], &output, 1, sum_.size(), sum_.data());
  }
  wire_.encode(sum_.data(), sum_.size(), to);
}

bool EpDispatcher::TakeFrame(int peer) {
  EpLink& link = *group_.link(peer);
  const EpFrameHeader* const frame = link.Peek();
  if (frame == nullptr || frame->kind == EpFrameKind::kStep ||
      frame->kind == EpFrameKind::kCombine) {
    return false;  // not what a Receive waits for
  }
  if (frame->kind == EpFrameKind::kExchange) return TakeExchange(peer, *frame);
  Op& op = at(frame->op);
  if (op.id != frame->op || op.state != State::kSent) return false;  // the peer is ahead of us
  Op::Peer& from = op.peers[peer];
  if (!from.plan_in) {
    if (!TakePlan(op, peer, *frame)) return false;
    if (frame->kind == EpFrameKind::kPlan) link.Pop();
    Group(op);
    return true;
  }
  if (!op.grouped) return false;
  const size_t tokens = op.RowsOf(peer), rows_bytes = frame->count * token_bytes_;
  if (frame->kind == EpFrameKind::kPlanRows && op.low_latency && from.rows_in == 0 &&
      frame->count == tokens && frame->bytes >= rows_bytes) {
    Place(op, peer, link.payload() + (frame->bytes - rows_bytes), frame->count);
  } else if (frame->kind == EpFrameKind::kRows && frame->first == from.rows_in &&
             frame->count > 0 && frame->count <= tokens - from.rows_in &&
             frame->bytes == rows_bytes) {
    Place(op, peer, link.payload(), frame->count);
  } else {
    link.Break(absl::InternalError(absl::StrCat(
        "rows ", frame->first, " + ", frame->count, " in ", frame->bytes, " bytes where row ",
        from.rows_in, " of ", tokens, " is wanted, ", token_bytes_, " bytes each")));
    return false;
  }
  link.Pop();
  return true;
}

bool EpDispatcher::TakePlan(Op& op, int peer, const EpFrameHeader& frame) {
  EpLink& link = *group_.link(peer);
  const size_t tokens = frame.count, entries = frame.entries;
  const size_t plan_bytes = PlanBytes(tokens, entries, options_.reduced);
  const bool whole = frame.kind == EpFrameKind::kPlanRows;
  const size_t wanted = whole ? PaddedToEpFrame(plan_bytes) + tokens * token_bytes_ : plan_bytes;
  // The path is a function of the headers: another kind of frame is a rank that computes otherwise.
  if (frame.kind != (op.low_latency ? EpFrameKind::kPlanRows : EpFrameKind::kPlan) ||
      tokens > static_cast<size_t>(options_.max_tokens) || frame.bytes != wanted) {
    link.Break(absl::InternalError(absl::StrCat(
        "a plan of kind ", static_cast<int>(frame.kind), " for ", tokens, " tokens and ", entries,
        " entries in ", frame.bytes, " bytes; at most ", options_.max_tokens, " tokens")));
    return false;
  }
  const PlanTerms terms = {options_.top_k, local_experts(), options_.reduced};
  const absl::Status read =
      ReadPlan({link.payload(), plan_bytes}, tokens, entries, terms, &op.in[peer]);
  if (!read.ok()) {
    link.Break(read);
    return false;
  }
  op.peers[peer].plan_in = true;
  return true;
}

void EpDispatcher::Group(Op& op) {
  for (const Op::Peer& p : op.peers) {
    if (!p.plan_in) return;
  }
  const absl::Status grouped = GroupByExpert(op.in, local_experts(), &op.grouping);
  if (!grouped.ok()) return group_.Fail(absl::UnavailableError(grouped.message()));
  op.grouped = true;
  if (op.plans_only) return;
  size_t first = 0;
  for (size_t p = 0; p < op.peers.size(); ++p) {
    op.peers[p].first = first;
    first += op.in[p].counts.size();
  }
  const size_t bytes = op.grouping.tokens * row_bytes_;
  if (op.rows.size() < std::max<size_t>(bytes, 1)) op.rows = AlignedBuffer(bytes + bytes / 4 + 1);
  // This rank's own rows, as those that travel.
  Op::Peer& self = op.peers[group_.rank()];
  std::byte* to = op.rows.data() + self.first * row_bytes_;
  for (const int32_t token : op.out[group_.rank()].tokens) {
    tokens_.keep(op.hidden.row(token), options_.hidden, to);
    to += row_bytes_;
    ++self.rows_in;
  }
}

void EpDispatcher::Place(Op& op, int peer, const std::byte* rows, size_t count) {
  Op::Peer& from = op.peers[peer];
  std::byte* to = op.rows.data() + (from.first + from.rows_in) * row_bytes_;
  for (size_t i = 0; i < count; ++i, rows += token_bytes_, to += row_bytes_) {
    tokens_.receive(rows, options_.hidden, to);
  }
  from.rows_in += count;
}

bool EpDispatcher::Received(const Op& op) const {
  for (size_t p = 0; p < op.peers.size(); ++p) {
    if (!op.peers[p].plan_in || op.peers[p].rows_in < op.RowsOf(static_cast<int>(p))) return false;
  }
  return op.grouped;
}

const std::byte* EpDispatcher::NextReturned(Op& op, int peer) {
  EpLink& link = *group_.link(peer);
  Op::Peer& from = op.peers[peer];
  const EpFrameHeader* const frame = link.Peek();
  if (frame == nullptr || frame->kind != EpFrameKind::kCombine || frame->op != op.id)
    return nullptr;
  if (from.row_of_frame == 0 && (frame->first != from.returned || frame->count == 0 ||
                                 frame->count > ReturnsOf(op.out[peer]) - from.returned ||
                                 frame->bytes != frame->count * row_bytes_)) {
    link.Break(absl::InternalError(absl::StrCat(
        "outputs ", frame->first, " + ", frame->count, " in ", frame->bytes, " bytes where ",
        from.returned, " of ", ReturnsOf(op.out[peer]), " is wanted")));
    return nullptr;
  }
  return link.payload() + from.row_of_frame * row_bytes_;
}

const std::byte* EpDispatcher::OwnOutput(Op& op) {
  Op::Peer& self = op.peers[group_.rank()];
  if (!options_.reduced) {
    return op.expert_rows.row(op.grouping.rows[group_.rank()][self.returned]);
  }
  OutputRow(op, group_.rank(), self.returned, &self.summed_entries, own_sum_.data());
  return own_sum_.data();
}

bool EpDispatcher::SumReturned(Op& op) {
  const size_t before = op.summed;
  const size_t top_k = options_.top_k, width = options_.hidden;
  // Rows of one token that are here and not yet added.
  float weights[kSumRows];
  const std::byte* rows[kSumRows];
  size_t count = 0;
  bool more = false;
  float* to = nullptr;
  const auto add = [&] {
    if (count > 0) wire_.sum(more, weights, rows, count, width, to);
    count = 0;
  };
  for (; op.summed < op.returns(); ++op.summed) {
    const auto [token, rank] = op.Returning(op.summed, top_k);
    const bool first = op.summed == 0 || op.Returning(op.summed - 1, top_k).token != token;
    if (first || count == kSumRows) add();
    Op::Peer& from = op.peers[rank];
    const bool own = rank == group_.rank();
    const std::byte* const row = own ? OwnOutput(op) : NextReturned(op, rank);
    if (row == nullptr) break;
    if (count == 0) {
      more = !first;
      to = op.sums.row(token);
    }
    weights[count] = options_.reduced ? 1.0f : op.weights(token, op.summed % top_k);
    rows[count++] = row;
    ++from.returned;
    if (own || ++from.row_of_frame < group_.link(rank)->Peek()->count) continue;
    add();  // before the peer writes there again
    group_.link(rank)->Pop();
    from.row_of_frame = 0;
  }
  add();
  return op.summed != before;
}

}  // namespace switchyard
