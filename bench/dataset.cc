#include "bench/dataset.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <optional>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/status_macros.h"

namespace switchyard {
namespace {

using Json = nlohmann::json;
constexpr int kLengthMax = 10'000'000;
constexpr size_t kBlocksMax = kLengthMax / kTraceBlockTokens + 1;
constexpr double kTimestampMsMax = 1e12;  // 30 years
constexpr std::string_view kByteOrderMark = "\xef\xbb\xbf";

absl::Status Bad(size_t line, std::string_view what) {
  return absl::InvalidArgumentError(
      absl::StrCat("line ", line, ": ", absl::string_view(what.data(), what.size())));
}

std::optional<int> Length(const Json& row, const char* key) {
  const auto it = row.find(key);
  if (it == row.end() || !it->is_number_integer()) return std::nullopt;
  const int64_t value = it->get<int64_t>();
  if (value < 0 || value > kLengthMax) return std::nullopt;
  return static_cast<int>(value);
}

absl::StatusOr<DatasetRow> MooncakeRow(std::string_view line, size_t number) {
  const Json row = Json::parse(line, nullptr, /*allow_exceptions=*/false);
  if (!row.is_object()) return Bad(number, "is not a JSON object");
  const auto input = Length(row, "input_length"), output = Length(row, "output_length");
  if (!input || !output) {
    return Bad(number, "input_length and output_length of 0 to 10000000 are wanted");
  }
  const auto at = row.find("timestamp");
  if (at == row.end() || !at->is_number() || !(at->get<double>() >= 0) ||
      at->get<double>() > kTimestampMsMax) {
    return Bad(number, "a timestamp of 0 or more milliseconds is wanted");
  }
  DatasetRow out;
  out.at = absl::Milliseconds(at->get<double>());
  out.input_len = std::max(1, *input);
  out.output_len = std::max(1, *output);
  const auto ids = row.find("hash_ids");
  if (ids == row.end()) return out;
  if (!ids->is_array() || ids->size() > kBlocksMax) return Bad(number, "hash_ids is no short list");
  for (const Json& id : *ids) {
    if (!id.is_number_unsigned() || id.get<uint64_t>() > UINT32_MAX) {
      return Bad(number, "hash_ids has something else than numbers of 32 bits");
    }
    out.block_ids.push_back(id.get<uint32_t>());
  }
  return out;
}

// Both of Azure's traces: without a zone (2023), which is UTC, and with one (2024).
std::optional<absl::Time> Timestamp(const std::string& text) {
  absl::Time at;
  for (const char* format : {"%Y-%m-%d %H:%M:%E*S", "%Y-%m-%d %H:%M:%E*S%Ez", "%Y-%m-%dT%H:%M:%E*S",
                             "%Y-%m-%dT%H:%M:%E*S%Ez"}) {
    if (absl::ParseTime(format, text, absl::UTCTimeZone(), &at, nullptr)) return at;
  }
  return std::nullopt;
}

absl::StatusOr<std::pair<absl::Time, DatasetRow>> AzureRow(std::string_view line, size_t number) {
  const std::vector<std::string> columns =
      absl::StrSplit(absl::string_view(line.data(), line.size()), ',');
  const std::optional<absl::Time> at = Timestamp(columns.front());
  int input = 0, output = 0;
  if (columns.size() != 3 || !absl::SimpleAtoi(columns[1], &input) ||
      !absl::SimpleAtoi(columns[2], &output) || input < 0 || output < 0 || input > kLengthMax ||
      output > kLengthMax || !at) {
    return Bad(number, "a time and two lengths of 0 to 10000000 are wanted");
  }
  DatasetRow row;
  row.input_len = std::max(1, input);
  row.output_len = std::max(1, output);
  return std::pair(*at, std::move(row));
}

// Calls `row(line, number)` for at most rows_max non-empty lines after the first `skip`.
template <typename Row>
absl::Status EachLine(std::string_view text, size_t skip, int rows_max, Row row) {
  int rows = 0;
  for (size_t number = 1; !text.empty() && rows < rows_max; ++number) {
    const size_t end = std::min(text.find('\n'), text.size());
    std::string_view line = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    if (line.ends_with('\r')) line.remove_suffix(1);
    if (number <= skip || line.empty()) continue;
    RETURN_IF_ERROR(row(line, number));
    ++rows;
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::vector<DatasetRow>> ParseTrace(std::string_view text, int rows_max) {
  std::vector<DatasetRow> rows;
  if (text.starts_with(kByteOrderMark)) text.remove_prefix(kByteOrderMark.size());
  if (text.starts_with("TIMESTAMP")) {
    std::vector<std::pair<absl::Time, DatasetRow>> timed;
    RETURN_IF_ERROR(EachLine(text, 1, rows_max, [&](std::string_view line, size_t number) {
      auto row = AzureRow(line, number);
      if (row.ok()) timed.push_back(*std::move(row));
      return row.status();
    }));
    const auto earlier = [](const auto& a, const auto& b) { return a.first < b.first; };
    const auto first = std::min_element(timed.begin(), timed.end(), earlier);
    for (auto& [at, row] : timed) {
      row.at = at - first->first;
      rows.push_back(std::move(row));
    }
  } else {
    RETURN_IF_ERROR(EachLine(text, 0, rows_max, [&](std::string_view line, size_t number) {
      auto row = MooncakeRow(line, number);
      if (row.ok()) rows.push_back(*std::move(row));
      return row.status();
    }));
  }
  if (rows.empty()) return absl::InvalidArgumentError("has no rows");
  std::stable_sort(rows.begin(), rows.end(),
                   [](const DatasetRow& a, const DatasetRow& b) { return a.at < b.at; });
  const absl::Duration first = rows.front().at;
  for (DatasetRow& row : rows) row.at -= first;
  return rows;
}

absl::StatusOr<std::vector<Conversation>> ParseShareGpt(std::string_view text, int rows_max) {
  const Json root = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!root.is_array()) return absl::InvalidArgumentError("is not a JSON array");
  std::vector<Conversation> out;
  for (const Json& entry : root) {
    if (static_cast<int>(out.size()) == rows_max) break;
    if (!entry.is_object()) return absl::InvalidArgumentError("an entry is no object");
    const auto turns = entry.find("conversations");
    if (turns == entry.end() || !turns->is_array() || turns->size() < 2) continue;
    Conversation c;
    for (auto [turn, to] : {std::pair(0, &c.prompt), std::pair(1, &c.answer)}) {
      const Json& t = (*turns)[turn];
      const auto value = t.is_object() ? t.find("value") : t.end();
      if (t.is_object() && value != t.end() && value->is_string()) *to = value->get<std::string>();
    }
    if (!c.prompt.empty() && !c.answer.empty()) out.push_back(std::move(c));
  }
  if (out.empty()) {
    return absl::InvalidArgumentError("no conversation has a question and an answer");
  }
  return out;
}

}  // namespace switchyard
