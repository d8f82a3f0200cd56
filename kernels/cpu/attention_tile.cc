#include "kernels/cpu/attention_tile.h"

namespace switchyard::cpu {
namespace {

// Lines that are fetched at once, and the steps of a tile in between: what memory gives in the time
// of these.
constexpr int kLinesAtOnce = 32;
constexpr size_t kStepsBetween = 16;
constexpr int kPairsBetween = 8;

}  // namespace

void FetchAhead::Start(const unsigned char* const* keys, size_t key_bytes,
                       const unsigned char* const* values, size_t value_bytes, int count) {
  keys_ = keys;
  values_ = values;
  key_bytes_ = key_bytes;
  value_bytes_ = count > 0 && values[0] == keys[0] ? 0 : value_bytes;  // inside the keys
  row_ = 0;
  rows_ = std::max(count, 0);
  at_ = 0;
  in_values_ = false;
}

void FetchAhead::Some() {
  for (int line = 0; line < kLinesAtOnce && row_ < rows_; ++line) {
    const size_t bytes = in_values_ ? value_bytes_ : key_bytes_;
    __builtin_prefetch((in_values_ ? values_ : keys_)[row_] + at_, 0, 2);
    at_ += 64;
    if (at_ < bytes) continue;
    at_ = 0;
    if (++row_ == rows_ && !in_values_ && value_bytes_ > 0) {
      in_values_ = true;
      row_ = 0;
    }
  }
}

void TileOfQueries::Run() {
  LoadQueries();
  const bool all = task_.found == nullptr;
  const int from = Start(0) - Start(0) % kSubBlock;  // nobody attends to what is before
  const int segment = all ? 0 : task_.segment * kAttentionSegment;
  const int begin = std::max(from, segment);
  const int context_max = Context(task_.count - 1);
  const int end = all ? context_max : std::min(context_max, segment + kAttentionSegment);
  const size_t element = SizeOf(call_.addressing.dtype);
  const size_t key_bytes = call_.shape.qk_dim * element, value_bytes = call_.shape.v_dim * element;
  // Contexts and their starts ascend: queries before `first` are finished, from `last` on none has
  // begun.
  int first = 0, last = 0;
  Rows rows[2];  // of this sub-block and of the next
  Locate(begin, std::min(kSubBlock, end - begin), rows[0]);
  for (int base = begin; base < end; base += kSubBlock) {
    while (Context(first) <= base) ++first;
    while (last < task_.count && Start(last) < base + kSubBlock) ++last;
    const int next = std::min(kSubBlock, end - base - kSubBlock);
    Locate(base + kSubBlock, next, rows[1]);
    ahead_.Start(rows[1].keys, key_bytes, rows[1].values, value_bytes, next);
    LoadKeys(rows[0]);
    LoadValues(rows[0], std::min(kSubBlock, end - base));
    Scores(first, last);
    for (int i = first; i < last; ++i) Softmax(i, base);
    AddValues(first, last, base);
    const bool closes = (base + kSubBlock) % kAttentionSegment == 0;
    for (int i = first; i < last; ++i) {
      if (!closes && Context(i) > base + kSubBlock) continue;
      if (all) {
        Merge(i, w_.in_segment[i], w_.segment + i * call_.v_stride(),
              base / kAttentionSegment == Start(i) / kAttentionSegment);
      } else {
        Leave(i);
      }
    }
    rows[0] = rows[1];
  }
  for (int i = 0; all && i < task_.count; ++i) Finish(i);
}

// The segments that other tasks left, in ascending order.
void TileOfQueries::MergeFound() {
  for (int i = 0; i < task_.count; ++i) {
    const int first = Start(i) / kAttentionSegment;
    for (int s = first; s * kAttentionSegment < Context(i); ++s) {
      const float* at = FoundAt(s, i);
      Merge(i, {at[0], at[1]}, at + call_.isa.lanes, s == first);
    }
    Finish(i);
  }
}

// Of positions [base, base + count); the rest of the sub-block reads as keys and values of 0, and
// no memory of the cache beyond is touched.
void TileOfQueries::Locate(int base, int count, Rows& rows) const {
  const KvAddressing& a = call_.addressing;
  const size_t head = task_.kv_head, element = SizeOf(a.dtype);
  const auto* kv = reinterpret_cast<const unsigned char*>(call_.kv);
  const unsigned char* k = kv + (a.k_offset + head * a.k_head_stride) * element;
  const unsigned char* v = kv + (a.v_offset + head * a.v_head_stride) * element;
  size_t block = base / a.block_tokens, token = base % a.block_tokens;
  int j = 0;
  for (; j < count; ++block, token = 0) {
    const size_t at = task_.sequence->blocks[block] * a.block_stride * element;
    for (; token < static_cast<size_t>(a.block_tokens) && j < count; ++token, ++j) {
      rows.keys[j] = k + at + token * a.k_token_stride * element;
      rows.values[j] = v + at + token * a.v_token_stride * element;
    }
  }
  std::fill(rows.keys + j, rows.keys + kSubBlock, w_.zeros);
  std::fill(rows.values + j, rows.values + kSubBlock, w_.zeros);
}

void TileOfQueries::LoadQueries() {
  const size_t dim = call_.shape.qk_dim, bytes = call_.q_bytes();
  for (int i = 0; i < task_.count; ++i) {
    std::byte* to = w_.q + i * bytes;
    std::memset(to + bytes - 128, 0, 128);  // past an odd end
    StoreLeft(call_.isa, call_.kind(),
              call_.q.row(task_.sequence->first_row + Row(i)) + Head(i) * dim, dim, to);
  }
  std::memset(w_.zeros, 0,
              std::max<size_t>(call_.key_steps(), call_.v_stride()) * sizeof(uint32_t));
}

void TileOfQueries::LoadKeys(const Rows& rows) {
  const size_t whole = call_.shape.qk_dim * SizeOf(call_.addressing.dtype) / sizeof(uint32_t);
  for (int j = 0; j < kSubBlock; j += call_.isa.lanes) {
    call_.isa.transpose(rows.keys + j, whole, w_.keys + j);
    ahead_.Some();
  }
  if (whole == call_.key_steps()) return;
  for (int j = 0; j < kSubBlock; ++j) {  // the last BF16 of an odd length
    uint16_t last;
    std::memcpy(&last, rows.keys[j] + whole * sizeof(uint32_t), sizeof(last));
    w_.keys[whole * kSubBlock + j] = last;
  }
}

void TileOfQueries::LoadValues(const Rows& rows, int count) {
  const size_t v_dim = call_.shape.v_dim, stride = call_.v_stride();
  const bool pairs = call_.addressing.dtype == DType::kBfloat16;
  for (int j = 0, step = 0; j < count; j += pairs ? 2 : 1, ++step) {
    uint32_t* to = w_.values + step * stride;
    if (pairs) {
      call_.isa.pair(rows.values[j], rows.values[j + 1], v_dim, to);
    } else {
      std::memcpy(to, rows.values[j], v_dim * sizeof(float));
    }
    std::fill(to + v_dim, to + stride, 0);
    if (step % kPairsBetween == 0) ahead_.Some();
  }
}

void TileOfQueries::Multiply(const std::byte* a, size_t a_bytes, const uint32_t* b, size_t columns,
                             size_t steps, float* c, size_t c_stride, int rows, bool accumulate) {
  const size_t width = static_cast<size_t>(call_.isa.lanes) * call_.isa.tile_vectors;
  const size_t unit = call_.kind() == kTileWiden ? 2 * sizeof(float) : sizeof(float);
  for (size_t column = 0; column < columns; column += width) {
    size_t step = 0;
    do {
      const size_t some = ahead_.done() ? steps - step : std::min(kStepsBetween, steps - step);
      call_.isa.tile[call_.kind()](
          {.a = a + step * unit,
           .a_stride = a_bytes,
           .b = b + step * columns + column,
           .b_stride = columns,
           .steps = some,
           .c = c + column,
           .c_stride = c_stride,
           .rows = rows,
           .vectors = static_cast<int>(std::min(width, columns - column) / call_.isa.lanes),
           .accumulate = accumulate || step > 0});
      step += some;
      ahead_.Some();
    } while (step < steps);
  }
}

void TileOfQueries::Scores(int first, int last) {
  for (int i = first; i < last; i += kTileRows) {
    Multiply(w_.q + i * call_.q_bytes(), call_.q_bytes(), w_.keys, kSubBlock, call_.key_steps(),
             w_.scores + i * kSubBlock, kSubBlock, std::min(kTileRows, last - i), false);
  }
}

void TileOfQueries::Softmax(int i, int base) {
  Found& f = w_.in_segment[i];
  const bool opens = Opens(i, base);
  if (opens) f = {-__builtin_inff(), 0};
  float* scores = w_.scores + i * kSubBlock;
  if (Start(i) > base) std::fill_n(scores, Start(i) - base, -__builtin_inff());  // weights of 0
  const float factor =
      call_.isa.softmax_step(scores, KeysOf(i, base), call_.shape.scale, &f.max, &f.sum);
  StoreLeft(call_.isa, call_.kind(), scores, kSubBlock, w_.weights + i * call_.weight_bytes());
  if (!opens && factor != 1.0f) {
    call_.isa.scale(w_.segment + i * call_.v_stride(), call_.v_stride(), factor);
  }
}

// segment += weights · values. Queries with the same number of keys go together: a key past a
// query's own is not even multiplied by 0, for its value may be NaN.
void TileOfQueries::AddValues(int first, int last, int base) {
  const size_t stride = call_.v_stride(), a_bytes = call_.weight_bytes();
  const bool pairs = call_.addressing.dtype == DType::kBfloat16;
  for (int i = first, rows = 0; i < last; i += rows) {
    const int keys = KeysOf(i, base);
    const bool opens = Opens(i, base);
    const auto alike = [&](int j) { return KeysOf(j, base) == keys && Opens(j, base) == opens; };
    rows = 1;
    while (rows < kTileRows && i + rows < last && alike(i + rows)) ++rows;
    const size_t whole = pairs ? keys / 2 : keys;
    const std::byte* a = w_.weights + i * a_bytes;
    float* c = w_.segment + i * stride;
    Multiply(a, a_bytes, w_.values, stride, whole, c, stride, rows, !opens);
    if (!pairs || keys % 2 == 0) continue;
    // The last pair without its second value.
    uint32_t* odd = w_.values + call_.value_steps() * stride;
    for (size_t n = 0; n < stride; ++n) odd[n] = w_.values[whole * stride + n] & 0xffff;
    const size_t unit = call_.kind() == kTileDot ? 2 * sizeof(Bf16) : 2 * sizeof(float);
    Multiply(a + whole * unit, a_bytes, odd, stride, 1, c, stride, rows, true);
  }
}

// A segment of query i joins the total.
void TileOfQueries::Merge(int i, Found segment, const float* values, bool first_segment) {
  const size_t stride = call_.v_stride();
  float* total = w_.total + i * stride;
  Found& t = w_.in_total[i];
  if (first_segment) {
    std::copy_n(values, stride, total);
    t = segment;
    return;
  }
  const float max = std::max(t.max, segment.max);
  const float old_factor = call_.isa.exp(t.max - max);
  const float new_factor = call_.isa.exp(segment.max - max);
  call_.isa.merge(total, old_factor, values, new_factor, stride);
  t = {max, t.sum * old_factor + segment.sum * new_factor};
}

// The running segment of query i, for MergeFound.
void TileOfQueries::Leave(int i) {
  float* at = FoundAt(task_.segment, i);
  at[0] = w_.in_segment[i].max;
  at[1] = w_.in_segment[i].sum;
  std::copy_n(w_.segment + i * call_.v_stride(), call_.v_stride(), at + call_.isa.lanes);
}

void TileOfQueries::Finish(int i) {
  const size_t dim = call_.shape.v_dim;
  float* total = w_.total + i * call_.v_stride();
  call_.isa.scale(total, dim, 1.0f / w_.in_total[i].sum);
  std::copy_n(total, dim, call_.out.row(task_.sequence->first_row + Row(i)) + Head(i) * dim);
}

}  // namespace switchyard::cpu
