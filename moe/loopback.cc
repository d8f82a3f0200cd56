#include "moe/loopback.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"

namespace switchyard {

struct LoopbackDispatcher::InFlight {
  State state = State::kIdle;
  uint64_t id = 0;
  size_t tokens = 0;             // T
  std::vector<std::byte> rows;   // [T] of row_bytes_
  std::vector<int32_t> index;    // [T·K] grouped by expert: of which token
  std::vector<int32_t> offsets;  // [E + 1]
  std::vector<int32_t> row_of;   // [T·K]: where slot k of token t lies in `index`
  Matrix<const float> weights;   // [T, K]; this and the next two are the caller's
  ConstRows expert_rows;         // [T·K, H]
  Matrix<float> out;             // [T, H]
};

absl::StatusOr<std::unique_ptr<LoopbackDispatcher>> LoopbackDispatcher::Create(
    const Options& options) {
  const auto refuse = [](const char* name, int value) {
    return absl::InvalidArgumentError(
        absl::StrCat("LoopbackDispatcher: ", name, " = ", value, " is out of range"));
  };
  if (options.experts < 1) return refuse("experts", options.experts);
  if (options.top_k < 1 || options.top_k > options.experts) return refuse("top_k", options.top_k);
  if (options.hidden < 1) return refuse("hidden", options.hidden);
  if (options.int8_tokens && options.dtype != DType::kBfloat16) return refuse("int8_tokens", 1);
  // Rows are numbered in 32 bits.
  if (options.max_tokens < 1 || options.max_tokens > INT32_MAX / options.top_k) {
    return refuse("max_tokens", options.max_tokens);
  }
  return std::unique_ptr<LoopbackDispatcher>(new LoopbackDispatcher(options));
}

LoopbackDispatcher::LoopbackDispatcher(const Options& options)
    : options_(options),
      codec_(RowCodecOf(options.dtype)),
      tokens_(TokenCodecOf(options.dtype, options.int8_tokens)),
      row_bytes_(static_cast<size_t>(options.hidden) * SizeOf(options.dtype)) {
  const size_t rows_max = static_cast<size_t>(options.max_tokens) * options.top_k;
  for (auto& d : in_flight_) {
    d = std::make_unique<InFlight>();
    // Address space: pages come when rows do.
    d->rows.reserve(static_cast<size_t>(options.max_tokens) * row_bytes_);
    d->index.reserve(rows_max);
    d->row_of.reserve(rows_max);
    d->offsets.resize(options.experts + 1);
  }
}

LoopbackDispatcher::~LoopbackDispatcher() = default;

DispatchShape LoopbackDispatcher::Shape() const {
  return {.experts = options_.experts,
          .top_k = options_.top_k,
          .hidden = options_.hidden,
          .max_tokens = options_.max_tokens,
          .dtype = options_.dtype};
}

void LoopbackDispatcher::ForTokens(size_t tokens, size_t cost,
                                   FunctionRef<void(size_t, size_t, int)> body) const {
  if (options_.pool == nullptr) return body(0, tokens, 0);
  options_.pool->ForRanges(tokens, cost, body);
}

absl::StatusOr<DispatchHandle> LoopbackDispatcher::Send(int, Matrix<const float> hidden,
                                                        Matrix<const int32_t> experts,
                                                        Matrix<const float> weights,
                                                        std::span<const int32_t> positions) {
  const size_t tokens = hidden.rows(), top_k = options_.top_k, width = options_.hidden;
  RETURN_IF_ERROR(CheckDispatch(Shape(), hidden, experts, weights, positions));
  InFlight& d = at(next_id_);
  if (d.state != State::kIdle) {
    return absl::FailedPreconditionError("a third dispatch: two are in flight");
  }

  // A counting sort by expert; scanning tokens in order keeps theirs.
  std::fill(d.offsets.begin(), d.offsets.end(), 0);
  for (size_t t = 0; t < tokens; ++t) {
    for (size_t k = 0; k < top_k; ++k) ++d.offsets[experts(t, k) + 1];
  }
  for (int e = 0; e < options_.experts; ++e) d.offsets[e + 1] += d.offsets[e];
  d.rows.resize(tokens * row_bytes_);
  d.index.resize(tokens * top_k);
  d.row_of.resize(tokens * top_k);
  for (size_t t = 0; t < tokens; ++t) {
    for (size_t k = 0; k < top_k; ++k) {
      const int32_t row = d.offsets[experts(t, k)]++;
      d.row_of[t * top_k + k] = row;
      d.index[row] = static_cast<int32_t>(t);
    }
  }
  ForTokens(tokens, width, [&](size_t begin, size_t end, int) {
    for (size_t t = begin; t < end; ++t) {
      tokens_.keep(hidden.row(t), width, &d.rows[t * row_bytes_]);
    }
  });
  // Each offset now stands at its expert's end, which is the next one's begin.
  std::copy_backward(d.offsets.begin(), d.offsets.end() - 1, d.offsets.end());
  d.offsets[0] = 0;

  d.state = State::kSent;
  d.tokens = tokens;
  d.weights = weights;
  d.id = next_id_;
  return DispatchHandle{next_id_++};
}

absl::StatusOr<LoopbackDispatcher::InFlight*> LoopbackDispatcher::Expect(DispatchHandle handle,
                                                                         State state) {
  InFlight& d = at(handle.id);
  const InFlight& other = at(handle.id + 1);
  const bool other_is_older = other.state != State::kIdle && other.id < handle.id;
  if (d.state != state || d.id != handle.id || (other_is_older && other.state <= state)) {
    return absl::FailedPreconditionError(
        absl::StrCat("dispatch ", handle.id, ": call out of order"));
  }
  return &d;
}

absl::StatusOr<DispatchedRows> LoopbackDispatcher::Receive(DispatchHandle handle) {
  auto d = Expect(handle, State::kSent);
  if (!d.ok()) return d.status();
  InFlight& in = **d;
  in.state = State::kReceived;
  const size_t width = options_.hidden;
  return DispatchedRows{
      {in.rows.data(), options_.dtype, in.tokens, width, row_bytes_}, in.index, in.offsets};
}

absl::Status LoopbackDispatcher::CombineSend(DispatchHandle handle, ConstRows expert_rows,
                                             Matrix<float> out) {
  ASSIGN_OR_RETURN(InFlight* const in, Expect(handle, State::kReceived));
  RETURN_IF_ERROR(CheckCombine(Shape(), in->tokens, in->row_of.size(), expert_rows, out));
  in->expert_rows = expert_rows;
  in->out = out;
  in->state = State::kReturned;
  return absl::OkStatus();
}

absl::Status LoopbackDispatcher::CombineReceive(DispatchHandle handle) {
  ASSIGN_OR_RETURN(InFlight* const returned, Expect(handle, State::kReturned));
  InFlight& in = *returned;
  const size_t top_k = options_.top_k, width = options_.hidden;
  ForTokens(in.tokens, top_k * width, [&](size_t begin, size_t end, int) {
    for (size_t t = begin; t < end; ++t) {
      for (size_t k = 0; k < top_k; k += kSumRows) {
        const std::byte* rows[kSumRows];
        const size_t count = std::min(kSumRows, top_k - k);
        for (size_t i = 0; i < count; ++i) {
          rows[i] = in.expert_rows.row(in.row_of[t * top_k + k + i]);
        }
        codec_.sum(k > 0, in.weights.row(t) + k, rows, count, width, in.out.row(t));
      }
    }
  });
  in.state = State::kIdle;
  return absl::OkStatus();
}

}  // namespace switchyard
