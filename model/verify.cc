#include "model/verify.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/status_macros.h"
#include "model/safetensors.h"

namespace switchyard {
namespace {

constexpr double kFloat32MaxError = 1e-3, kGreedyMargin = 1e-3;
constexpr double kMedianFactor = 1.25, kInt8MedianFactor = 16, kInt4MedianFactor = 64,
                 kOutlierFactor = 5, kOutlierPoints = 0.05;
constexpr int kBlockTokens = 16, kCasesMax = 64;
constexpr uint64_t kTokensMax = 1 << 16;

std::string Numbered(const char* name, int index) { return absl::StrCat(name, ".", index); }

absl::StatusOr<std::vector<int32_t>> TokenIds(const Checkpoint& golden, const std::string& name,
                                              int vocab) {
  constexpr std::string_view kI64[] = {"I64"};
  ASSIGN_OR_RETURN(const TensorBytes t, golden.Get(name, kI64));
  if (t.entry->shape.size() != 1 || t.entry->shape[0] < 1 || t.entry->shape[0] > kTokensMax) {
    return absl::InvalidArgumentError(
        absl::StrCat(name, ": wanted 1 to ", kTokensMax, " ids in one dimension"));
  }
  std::vector<int32_t> ids;
  for (size_t i = 0; i < t.entry->shape[0]; ++i) {
    int64_t id;
    std::memcpy(&id, t.bytes.data() + i * sizeof(id), sizeof(id));
    if (id < 0 || id >= vocab) {
      return absl::InvalidArgumentError(
          absl::StrCat(name, ": token ", id, " is not in the model's vocabulary of ", vocab));
    }
    ids.push_back(static_cast<int32_t>(id));
  }
  return ids;
}

// A stored BF16 or FP32 tensor as FP32.
absl::StatusOr<std::vector<float>> Floats(const Checkpoint& golden, const std::string& name,
                                          std::initializer_list<uint64_t> shape) {
  constexpr std::string_view kFloats[] = {"F32", "BF16"};
  ASSIGN_OR_RETURN(const TensorBytes t, golden.Get(name, {shape.begin(), shape.size()}, kFloats));
  const bool bf16 = t.entry->dtype == "BF16";
  std::vector<float> out(t.bytes.size() / (bf16 ? 2 : 4));
  for (size_t i = 0; i < out.size(); ++i) {
    Bf16 half;
    if (bf16) {
      std::memcpy(&half, t.bytes.data() + i * 2, 2);
      out[i] = ToFloat(half);
    } else {
      std::memcpy(&out[i], t.bytes.data() + i * 4, 4);
    }
  }
  return out;
}

double Median(std::vector<double> v) {
  if (v.empty()) return 0;
  const size_t middle = v.size() / 2;
  std::nth_element(v.begin(), v.begin() + middle, v.end());
  if (v.size() % 2 == 1) return v[middle];
  return (*std::max_element(v.begin(), v.begin() + middle) + v[middle]) / 2;
}

LogitError Compare(std::span<const float> found, std::span<const float> wanted, size_t vocab) {
  LogitError e;
  for (size_t begin = 0; begin < wanted.size(); begin += vocab) {
    double sum = 0;
    for (size_t i = begin; i < begin + vocab; ++i) {
      double delta = std::abs(static_cast<double>(found[i]) - wanted[i]);
      if (std::isnan(delta)) delta = HUGE_VAL;  // a NaN must not pass as "not greater"
      e.max = std::max(e.max, delta);
      sum += delta;
    }
    e.position_means.push_back(sum / static_cast<double>(vocab));
  }
  e.mean = std::accumulate(e.position_means.begin(), e.position_means.end(), 0.0) /
           static_cast<double>(e.position_means.size());
  e.median = Median(e.position_means);
  return e;
}

size_t ArgMax(std::span<const float> row) {
  return std::max_element(row.begin(), row.end()) - row.begin();
}

double LogSumExp(std::span<const float> row) {
  const double most = row[ArgMax(row)];
  double sum = 0;
  for (const float v : row) sum += std::exp(v - most);
  return most + std::log(sum);
}

// Of positions, by vocabulary: shares with the same best token, and the mean of KL(wanted ‖ found).
struct Agreement {
  double top1 = 0, kl = 0;
};
Agreement Agree(std::span<const float> found, std::span<const float> wanted, size_t vocab) {
  Agreement a;
  const double positions = static_cast<double>(wanted.size() / vocab);
  for (size_t begin = 0; begin < wanted.size(); begin += vocab) {
    const auto p = wanted.subspan(begin, vocab), q = found.subspan(begin, vocab);
    a.top1 += (ArgMax(p) == ArgMax(q)) / positions;
    const double p_sum = LogSumExp(p), q_sum = LogSumExp(q);
    for (size_t i = 0; i < vocab; ++i) {
      a.kl += std::exp(p[i] - p_sum) * ((p[i] - p_sum) - (q[i] - q_sum)) / positions;
    }
  }
  return a;
}

// One sequence with a cache of its own.
class Session {
 public:
  static absl::StatusOr<Session> Create(Model& model, int tokens_max) {
    const KvLayout layout = model.config().KvLayoutFor(model.options().dtype, kBlockTokens);
    ASSIGN_OR_RETURN(KvStorage kv, model.MakeKv(layout, layout.BlocksFor(tokens_max)));
    return Session(model, std::move(kv));
  }

  // Appends tokens, the prompt or generated ones; the logits of each, [T, V].
  absl::StatusOr<std::vector<float>> Append(std::span<const int32_t> tokens, bool prompt) {
    if (prompt) prompt_ += static_cast<int32_t>(tokens.size());
    const size_t vocab = model_.config().vocab_size, chunk_max = model_.options().max_batch_tokens;
    std::vector<float> logits(tokens.size() * vocab);
    for (size_t begin = 0; begin < tokens.size(); begin += chunk_max) {
      const auto chunk = tokens.subspan(begin, std::min(chunk_max, tokens.size() - begin));
      const int32_t count = static_cast<int32_t>(chunk.size());
      const AttentionSequence sequence{0, count, position_, blocks_};
      std::vector<int32_t> rows(count);
      std::iota(rows.begin(), rows.end(), 0);
      RETURN_IF_ERROR(model_.Forward({.tokens = chunk,
                                      .sequences = {&sequence, 1},
                                      .logit_rows = rows,
                                      .prompts = {&prompt_, 1}},
                                     kv_, nullptr,
                                     {logits.data() + begin * vocab, {chunk.size(), vocab}}));
      position_ += count;
    }
    return logits;
  }

 private:
  Session(Model& model, KvStorage kv) : model_(model), kv_(std::move(kv)), blocks_(kv_.blocks()) {
    std::iota(blocks_.begin(), blocks_.end(), 0);
  }

  Model& model_;
  KvStorage kv_;
  std::vector<int32_t> blocks_;
  int32_t position_ = 0, prompt_ = 0;
};

absl::StatusOr<VerifyCase> RunCase(Model& model, const Checkpoint& golden, int index) {
  const uint64_t vocab = model.config().vocab_size;
  ASSIGN_OR_RETURN(const auto ids,
                   TokenIds(golden, Numbered("input_ids", index), model.config().vocab_size));
  ASSIGN_OR_RETURN(const auto wanted,
                   Floats(golden, Numbered("logits", index), {ids.size(), vocab}));
  ASSIGN_OR_RETURN(const auto bf16,
                   Floats(golden, Numbered("logits_bf16", index), {ids.size(), vocab}));
  ASSIGN_OR_RETURN(Session session, Session::Create(model, static_cast<int>(ids.size())));
  ASSIGN_OR_RETURN(const auto found, session.Append(ids, /*prompt=*/true));

  VerifyCase c{index, static_cast<int>(ids.size()), Compare(found, wanted, vocab),
               Compare(bf16, wanted, vocab)};
  const Agreement ours = Agree(found, wanted, vocab), theirs = Agree(bf16, wanted, vocab);
  c.top1_agreement = ours.top1;
  c.top1_bf16 = theirs.top1;
  c.kl = ours.kl;
  c.kl_bf16 = theirs.kl;
  return c;
}

absl::Status RunGreedy(Model& model, const Checkpoint& golden, VerifyReport& report) {
  const int vocab = model.config().vocab_size;
  ASSIGN_OR_RETURN(const auto prompt, TokenIds(golden, "input_ids.1", vocab));
  ASSIGN_OR_RETURN(const auto wanted, TokenIds(golden, "greedy_ids", vocab));
  ASSIGN_OR_RETURN(const auto margins, Floats(golden, "greedy_margin", {wanted.size()}));
  ASSIGN_OR_RETURN(Session session,
                   Session::Create(model, static_cast<int>(prompt.size() + wanted.size())));
  const auto tie =
      std::find_if(margins.begin(), margins.end(), [](float m) { return !(m > kGreedyMargin); });
  report.greedy_compared = static_cast<int>(tie - margins.begin());
  ASSIGN_OR_RETURN(std::vector<float> logits, session.Append(prompt, /*prompt=*/true));
  for (int i = 0; i < report.greedy_compared; ++i) {
    const auto next = static_cast<int32_t>(ArgMax(std::span(logits).last(vocab)));
    if (next != wanted[i]) break;
    ++report.greedy_equal;
    ASSIGN_OR_RETURN(logits, session.Append({&next, 1}, /*prompt=*/false));
  }
  return absl::OkStatus();
}

double ShareAbove(std::span<const double> v, double limit) {
  const auto above = std::count_if(v.begin(), v.end(), [&](double d) { return d > limit; });
  return v.empty() ? 0 : static_cast<double>(above) / static_cast<double>(v.size());
}

void Judge(VerifyReport& r) {
  std::vector<double> ours, bf16;
  double max = 0;
  for (const VerifyCase& c : r.cases) {
    max = std::max(max, c.ours.max);
    if (c.index != 1 && c.index != 2) continue;
    ours.insert(ours.end(), c.ours.position_means.begin(), c.ours.position_means.end());
    bf16.insert(bf16.end(), c.bf16.position_means.begin(), c.bf16.position_means.end());
  }
  r.pooled_median = Median(ours);
  r.pooled_median_bf16 = Median(bf16);
  const double limit = kOutlierFactor * r.pooled_median_bf16;
  r.pooled_outliers = ShareAbove(ours, limit);
  r.pooled_outliers_bf16 = ShareAbove(bf16, limit);

  const auto require = [&](bool holds, const std::string& what) {
    if (!holds) r.failures.push_back(what);
  };
  if (r.dtype == Name(DType::kFloat32)) {
    require(max <= kFloat32MaxError,
            absl::StrCat("max |delta logit| ", max, " > ", kFloat32MaxError));
    require(r.greedy_equal == r.greedy_compared,
            absl::StrCat("greedy token ", r.greedy_equal, " of ", r.greedy_compared, " differs"));
  } else if (r.quantization) {
    const double factor =
        *r.quantization == WeightFormat::kInt4 ? kInt4MedianFactor : kInt8MedianFactor;
    require(r.pooled_median <= factor * r.pooled_median_bf16,
            absl::StrCat("median |delta logit| ", r.pooled_median, " > ", factor, " x ",
                         r.pooled_median_bf16));
  } else {
    require(r.pooled_median <= kMedianFactor * r.pooled_median_bf16,
            absl::StrCat("median |delta logit| ", r.pooled_median, " > ", kMedianFactor, " x ",
                         r.pooled_median_bf16));
    require(r.pooled_outliers <= r.pooled_outliers_bf16 + kOutlierPoints,
            absl::StrCat("share of outlying positions ", r.pooled_outliers, " > ",
                         r.pooled_outliers_bf16, " + ", kOutlierPoints));
  }
  r.passed = r.failures.empty();
}

}  // namespace

absl::StatusOr<VerifyReport> Verify(Model& model, const std::string& golden_path) {
  ASSIGN_OR_RETURN(const Checkpoint golden, Checkpoint::OpenFile(golden_path));
  VerifyReport report;
  report.architecture = model.config().architecture;
  report.numerics_id = model.numerics_id();
  report.dtype = Name(model.options().dtype);
  report.quantization = model.options().quantization;
  for (int i = 0; i < kCasesMax && golden.Has(Numbered("input_ids", i)); ++i) {
    ASSIGN_OR_RETURN(VerifyCase c, RunCase(model, golden, i));
    report.cases.push_back(std::move(c));
  }
  RETURN_IF_ERROR(RunGreedy(model, golden, report));  // also refuses a file without case 1
  Judge(report);
  return report;
}

}  // namespace switchyard
