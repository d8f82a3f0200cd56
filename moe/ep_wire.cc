#include "moe/ep_wire.h"

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "common/status_macros.h"

namespace switchyard {
namespace {

constexpr size_t kLanesMax = 8;

class Writer {
 public:
  template <typename T>
  void Number(T value) {
    static_assert(std::is_integral_v<T>);
    char bytes[sizeof value];
    std::memcpy(bytes, &value, sizeof value);
    out_.append(bytes, sizeof value);
  }
  void Text(const std::string& text) {
    Number(static_cast<uint32_t>(text.size()));
    out_ += text;
  }
  std::string Take() { return std::move(out_); }

 private:
  std::string out_;
};

class Reader {
 public:
  explicit Reader(std::string_view bytes) : rest_(bytes) {}
  template <typename T>
  absl::Status Number(const char* field, T* value) {
    if (rest_.size() < sizeof *value) return Short(field, sizeof *value);
    std::memcpy(value, rest_.data(), sizeof *value);
    rest_.remove_prefix(sizeof *value);
    return absl::OkStatus();
  }
  absl::Status Text(const char* field, std::string* text) {
    uint32_t size = 0;
    RETURN_IF_ERROR(Number(field, &size));
    if (rest_.size() < size) return Short(field, size);
    *text = rest_.substr(0, size);
    rest_.remove_prefix(size);
    return absl::OkStatus();
  }
  size_t left() const { return rest_.size(); }

 private:
  absl::Status Short(const char* field, size_t wanted) const {
    return absl::InvalidArgumentError(absl::StrCat("EP hello: ", field, " wants ", wanted,
                                                   " bytes, ", rest_.size(), " are left"));
  }
  std::string_view rest_;
};

bool Allows(const EpHello& hello, std::string_view lane) {
  return std::find(hello.lanes.begin(), hello.lanes.end(), lane) != hello.lanes.end();
}

// The words of `config` that are not the same in `other`; all of it if they cannot be compared.
std::string WordsNotIn(const std::string& config, const std::string& other) {
  const std::vector<std::string> words = absl::StrSplit(config, ' ');
  const std::vector<std::string> others = absl::StrSplit(other, ' ');
  if (words.size() != others.size()) return config;
  std::vector<std::string> differ;
  for (size_t i = 0; i < words.size(); ++i) {
    if (words[i] != others[i]) differ.push_back(words[i]);
  }
  return absl::StrJoin(differ, " ");
}

}  // namespace

bool SharesMemory(const EpHello& mine, const EpHello& theirs) {
  return Allows(mine, "shm") && Allows(theirs, "shm") && !mine.host_id.empty() &&
         mine.host_id == theirs.host_id;
}

absl::Status CheckEpHello(const EpHello& mine, int peer, const EpHello& theirs) {
  if (theirs.rank != peer || theirs.world != mine.world) {
    return absl::InvalidArgumentError(absl::StrCat("EP hello of rank ", peer, " of ", mine.world,
                                                   ": it says rank ", theirs.rank, " of ",
                                                   theirs.world));
  }
  if (theirs.config != mine.config) {
    return absl::FailedPreconditionError(
        absl::StrCat("EP rank ", peer, " computes \"", WordsNotIn(theirs.config, mine.config),
                     "\", rank ", mine.rank, " \"", WordsNotIn(mine.config, theirs.config), "\""));
  }
  if (theirs.ring_bytes != mine.ring_bytes) {
    return absl::FailedPreconditionError(absl::StrCat("EP rank ", peer, ": ring_bytes is ",
                                                      theirs.ring_bytes, ", of rank ", mine.rank,
                                                      " ", mine.ring_bytes));
  }
  if (!SharesMemory(mine, theirs) && (!Allows(mine, "tcp") || !Allows(theirs, "tcp"))) {
    return absl::FailedPreconditionError(absl::StrCat(
        "EP rank ", peer, " allows lanes \"", absl::StrJoin(theirs.lanes, ","), "\", rank ",
        mine.rank, " \"", absl::StrJoin(mine.lanes, ","), "\": none that both can use"));
  }
  return absl::OkStatus();
}

std::string EncodeEpHello(const EpHello& h) {
  Writer w;
  w.Number(h.wire_version);
  w.Number(h.rank);
  w.Number(h.world);
  for (uint64_t n : {h.incarnation, h.last_epoch}) w.Number(n);
  w.Text(h.config);
  w.Text(h.host_id);
  w.Number(static_cast<uint32_t>(h.lanes.size()));
  for (const std::string& lane : h.lanes) w.Text(lane);
  w.Text(h.ucx_address);
  for (uint64_t n : {h.ring_token, h.ring_bytes, h.ring_address}) w.Number(n);
  w.Text(h.ring_ucx_address);
  w.Text(h.ring_rkey);
  return w.Take();
}

absl::StatusOr<EpHello> DecodeEpHello(std::string_view bytes) {
  if (bytes.size() > kEpHelloBytesMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("EP hello: ", bytes.size(), " bytes, at most ", kEpHelloBytesMax));
  }
  Reader r(bytes);
  EpHello h;
  RETURN_IF_ERROR(r.Number("wire_version", &h.wire_version));
  if (h.wire_version != kEpWireVersion) {
    return absl::InvalidArgumentError(absl::StrCat("EP hello: wire_version is ", h.wire_version,
                                                   ", this rank speaks ", kEpWireVersion));
  }
  RETURN_IF_ERROR(r.Number("rank", &h.rank));
  RETURN_IF_ERROR(r.Number("world", &h.world));
  if (h.world < 1 || h.world > kEpRanksMax || h.rank < 0 || h.rank >= h.world) {
    return absl::InvalidArgumentError(absl::StrCat("EP hello: rank ", h.rank, " of ", h.world,
                                                   "; groups have 1 to ", kEpRanksMax, " ranks"));
  }
  RETURN_IF_ERROR(r.Number("incarnation", &h.incarnation));
  RETURN_IF_ERROR(r.Number("last_epoch", &h.last_epoch));
  RETURN_IF_ERROR(r.Text("config", &h.config));
  RETURN_IF_ERROR(r.Text("host_id", &h.host_id));
  uint32_t lanes = 0;
  RETURN_IF_ERROR(r.Number("lanes", &lanes));
  if (lanes > kLanesMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("EP hello: ", lanes, " lanes, at most ", kLanesMax));
  }
  h.lanes.resize(lanes);
  for (std::string& lane : h.lanes) RETURN_IF_ERROR(r.Text("lane", &lane));
  RETURN_IF_ERROR(r.Text("ucx_address", &h.ucx_address));
  RETURN_IF_ERROR(r.Number("ring_token", &h.ring_token));
  RETURN_IF_ERROR(r.Number("ring_bytes", &h.ring_bytes));
  RETURN_IF_ERROR(r.Number("ring_address", &h.ring_address));
  RETURN_IF_ERROR(r.Text("ring_ucx_address", &h.ring_ucx_address));
  RETURN_IF_ERROR(r.Text("ring_rkey", &h.ring_rkey));
  if (r.left() != 0) {
    return absl::InvalidArgumentError(absl::StrCat("EP hello: ", r.left(), " bytes too many"));
  }
  return h;
}

}  // namespace switchyard
