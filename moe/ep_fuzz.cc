// Fuzz entry of what EP ranks say to each other (clang -fsanitize=fuzzer): the input as a hello,
// and as the memory of a ring with frames in it. What is taken must be within the input and survive
// being encoded again.
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string_view>
#include <vector>

#include "common/check.h"
#include "moe/ep_plan.h"
#include "moe/ep_wire.h"
#include "moe/row_codec.h"

namespace switchyard {
namespace {

constexpr int kTopK = 8, kSlots = 24;
constexpr size_t kHidden = 130;

void TryPlan(const EpFrameHeader& header, std::span<const std::byte> payload, bool weighted) {
  const size_t bytes = PlanBytes(header.count, header.entries, weighted);
  if (bytes > payload.size()) return;
  std::vector<RankPlan> plans(1);
  if (!ReadPlan(payload.first(bytes), header.count, header.entries, {kTopK, kSlots, weighted},
                plans.data())
           .ok()) {
    return;
  }
  std::vector<std::byte> again(bytes);
  WritePlan(plans[0], again.data());
  std::vector<std::byte> wanted(payload.begin(), payload.begin() + static_cast<ptrdiff_t>(bytes));
  if (header.count % 2 != 0) wanted[header.count] = std::byte{0};  // padding says nothing
  SY_CHECK(again == wanted);
  Grouping grouping;
  SY_CHECK(GroupByExpert(plans, kSlots, &grouping).ok());
  SY_CHECK(grouping.offsets.back() == static_cast<int32_t>(header.entries));
  std::vector<int32_t> rows = grouping.rows[0];
  std::sort(rows.begin(), rows.end());
  for (size_t i = 0; i < rows.size(); ++i) SY_CHECK(rows[i] == static_cast<int32_t>(i));
}

// Any bytes are a token, and what is made of it travels as it is.
void TryTokens(std::span<const std::byte> payload) {
  const TokenCodec& codec = TokenCodecOf(DType::kBfloat16, /*int8=*/true);
  constexpr size_t kBytes = TokenBytes(DType::kBfloat16, true, kHidden);
  alignas(2) std::array<std::byte, kBytes> wire;
  alignas(2) std::array<std::byte, kHidden * sizeof(Bf16)> row, again;
  std::array<float, kHidden> x;
  if (payload.size() < kBytes) return;
  std::copy_n(payload.begin(), kBytes, wire.begin());
  codec.receive(wire.data(), kHidden, row.data());
  RowCodecOf(DType::kBfloat16).decode(row.data(), kHidden, x.data());
  codec.keep(x.data(), kHidden, row.data());  // a sender's codes are below the greatest's
  RowCodecOf(DType::kBfloat16).decode(row.data(), kHidden, x.data());
  codec.keep(x.data(), kHidden, again.data());
  SY_CHECK(row == again);
}

void WalkRing(std::span<const std::byte> ring) {
  while (ring.size() >= sizeof(EpFrameHeader)) {
    EpFrameHeader header;
    std::memcpy(static_cast<void*>(&header), ring.data(), sizeof header);
    const auto behind = ring.subspan(sizeof header);
    if (header.magic != kEpFrameMagic || header.bytes > behind.size()) return;
    const auto payload = behind.first(header.bytes);
    if (header.kind == EpFrameKind::kPlan || header.kind == EpFrameKind::kPlanRows) {
      for (const bool weighted : {false, true}) TryPlan(header, payload, weighted);
    }
    if (header.kind == EpFrameKind::kRows) TryTokens(payload);
    ring = behind.subspan(std::min(behind.size(), PaddedToEpFrame(payload.size())));
  }
}

}  // namespace
}  // namespace switchyard

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace switchyard;  // NOLINT: a single function
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  if (const auto hello = DecodeEpHello(text); hello.ok()) SY_CHECK(EncodeEpHello(*hello) == text);
  WalkRing(std::as_bytes(std::span(data, size)));
  return 0;
}
