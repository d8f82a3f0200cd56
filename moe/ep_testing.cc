#include "moe/ep_testing.h"

#include <algorithm>
#include <barrier>
#include <numeric>
#include <thread>

#include "common/status_macros.h"
#include "moe/loopback.h"

namespace switchyard::testing {

EpHello OnTheWire(const EpHello& hello) {
  auto decoded = DecodeEpHello(EncodeEpHello(hello));
  SY_CHECK_MSG(decoded.ok(), decoded.status().ToString());
  return *std::move(decoded);
}

void RunRanks(int world, EpGroupOptions options,
              const std::function<void(EpGroup& group, int rank)>& body) {
  static const MonotonicClock clock;
  std::vector<std::vector<std::optional<EpHello>>> hellos(
      world, std::vector<std::optional<EpHello>>(world));
  std::barrier sync(world);
  std::vector<std::thread> threads;
  options.world = world;
  for (int rank = 0; rank < world; ++rank) {
    threads.emplace_back([&, rank, options]() mutable {
      options.rank = rank;
      auto group = EpGroup::Create(options, &clock);
      SY_CHECK_MSG(group.ok(), group.status().ToString());
      for (int p = 0; p < world; ++p) {
        if (p != rank) hellos[p][rank] = OnTheWire((*group)->HelloFor(p));
      }
      sync.arrive_and_wait();
      const absl::Status connected = (*group)->Connect(hellos[rank]);
      SY_CHECK_MSG(connected.ok(), connected.ToString());
      body(**group, rank);
      sync.arrive_and_wait();
    });
  }
  for (std::thread& t : threads) t.join();
}

Tokens RandomTokens(std::mt19937& rng, size_t count, int experts, int top_k, int hidden) {
  Tokens t{
      .top_k = top_k, .hidden = hidden, .rows = {}, .weights = {}, .experts = {}, .positions = {}};
  std::uniform_real_distribution<float> real(-1, 1);
  for (size_t i = 0; i < count * hidden; ++i) t.rows.push_back(real(rng));
  for (size_t i = 0; i < count * top_k; ++i) t.weights.push_back(real(rng));
  std::vector<int32_t> ids(experts);
  std::iota(ids.begin(), ids.end(), 0);
  for (size_t i = 0; i < count; ++i) {
    std::shuffle(ids.begin(), ids.end(), rng);
    t.experts.insert(t.experts.end(), ids.begin(), ids.begin() + top_k);
    t.positions.push_back(static_cast<int32_t>(rng() % 1000));
  }
  return t;
}

Placement RandomPlacement(std::mt19937& rng, int layers, int experts, int redundant, int ranks) {
  std::vector<int32_t> table;
  for (int l = 0; l < layers; ++l) {
    std::vector<int32_t> row(experts + redundant);
    std::iota(row.begin(), row.end(), 0);
    for (int r = experts; r < experts + redundant; ++r) {
      row[r] = static_cast<int32_t>(rng() % experts);
    }
    std::shuffle(row.begin(), row.end(), rng);
    table.insert(table.end(), row.begin(), row.end());
  }
  auto placement = Placement::Create(
      1, experts, ranks,
      {table.data(), {static_cast<size_t>(layers), static_cast<size_t>(experts + redundant)}});
  SY_CHECK_MSG(placement.ok(), placement.status().ToString());
  return *std::move(placement);
}

Computed Compute(const Dispatcher& dispatcher, int layer, const DispatchedRows& in) {
  const auto& [tokens, index, offsets] = in;
  const size_t row_bytes = tokens.cols * SizeOf(tokens.dtype);
  Computed out;
  out.bytes.resize(index.size() * row_bytes);
  out.rows = {out.bytes.data(), tokens.dtype, index.size(), tokens.cols, row_bytes};
  for (int s = 0; s < dispatcher.local_experts(); ++s) {
    const auto e = static_cast<float>(dispatcher.LogicalExpert(layer, s));
    for (int32_t r = offsets[s]; r < offsets[s + 1]; ++r) {
      std::vector<float> y(tokens.cols);
      for (size_t i = 0; i < y.size(); ++i) y[i] = tokens(index[r], i) * (e + 1) + e;
      RowCodecOf(tokens.dtype).encode(y.data(), y.size(), out.rows.row(r));
    }
  }
  return out;
}

absl::StatusOr<std::vector<std::vector<float>>> ExchangeAll(Dispatcher& dispatcher, int layer,
                                                            std::span<const Tokens> batches,
                                                            const std::function<void()>& between) {
  std::vector<DispatchHandle> handles;
  for (const Tokens& t : batches) {
    ASSIGN_OR_RETURN(handles.emplace_back(),
                     dispatcher.Send(layer, t.h(), t.e(), t.w(), t.positions));
    between();
  }
  std::vector<Computed> outputs(batches.size());
  std::vector<std::vector<float>> sums;
  for (const Tokens& t : batches) sums.emplace_back(t.rows.size(), NAN);
  for (size_t i = 0; i < batches.size(); ++i) {
    const Tokens& t = batches[i];
    ASSIGN_OR_RETURN(const DispatchedRows in, dispatcher.Receive(handles[i]));
    outputs[i] = Compute(dispatcher, layer, in);
    RETURN_IF_ERROR(
        dispatcher.CombineSend(handles[i], outputs[i].rows, {sums[i].data(), t.h().extents()}));
  }
  for (const DispatchHandle handle : handles) RETURN_IF_ERROR(dispatcher.CombineReceive(handle));
  return sums;
}

absl::StatusOr<std::vector<float>> Exchange(Dispatcher& dispatcher, int layer,
                                            const Tokens& tokens) {
  ASSIGN_OR_RETURN(auto all, ExchangeAll(dispatcher, layer, {&tokens, 1}, [] {}));
  return std::move(all[0]);
}

std::vector<float> Wanted(const Tokens& tokens, int experts, DType dtype, bool int8_tokens) {
  auto loopback =
      LoopbackDispatcher::Create({.experts = experts,
                                  .top_k = tokens.top_k,
                                  .hidden = tokens.hidden,
                                  .max_tokens = std::max(1, static_cast<int>(tokens.count())),
                                  .dtype = dtype,
                                  .int8_tokens = int8_tokens});
  SY_CHECK_MSG(loopback.ok(), loopback.status().ToString());
  auto out = Exchange(**loopback, 0, tokens);
  SY_CHECK_MSG(out.ok(), out.status().ToString());
  return *std::move(out);
}

}  // namespace switchyard::testing
