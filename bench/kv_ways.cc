#include "bench/kv_ways.h"

#include <poll.h>

#include <algorithm>
#include <future>
#include <optional>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "bench/peer_text.h"
#include "bench/raw_pipe.h"
#include "bench/ucx_put.h"
#include "common/clock.h"
#include "common/status_macros.h"
#include "kvtransfer/hello_proto.h"
#include "kvtransfer/kv_transfer.h"
#include "kvtransfer/lane.h"

namespace switchyard {
namespace {

constexpr size_t kSocketChunk = 128 << 10;

// start(done), and the value that done gets.
template <typename T, typename Start>
T Await(Start start) {
  auto promise = std::make_shared<std::promise<T>>();
  start([promise](T value) { promise->set_value(std::move(value)); });
  return promise->get_future().get();
}

absl::Status Expect(int fd, const std::string& wanted) {
  const std::string said = ReceiveText(fd);
  if (said == wanted) return absl::OkStatus();
  return absl::UnavailableError(absl::StrCat("the other end said \"", said, "\""));
}

absl::StatusOr<uint64_t> ReceiveNumber(int fd) {
  uint64_t number = 0;
  const std::string said = ReceiveText(fd);
  if (absl::SimpleAtoi(said, &number)) return number;
  return absl::UnavailableError(absl::StrCat("the other end said \"", said, "\", not a number"));
}

// For each block in the order in which a prefill rank finishes them: the offsets of its two places.
template <typename Each>
void ForEachBlock(const KvPages& pages, Each each) {
  const size_t bytes = pages.layout.BlockBytes(), layer_bytes = bytes * pages.from.size();
  for (int l = 0; l < pages.layout.layers; ++l) {
    for (size_t i = 0; i < pages.from.size(); ++i) {
      each(l, pages.from[i], static_cast<size_t>(l) * layer_bytes + pages.to[i].value() * bytes);
    }
  }
}

// ---- the lanes as they serve
class LaneSender final : public KvWay {
 public:
  static absl::StatusOr<std::unique_ptr<KvWay>> Make(const std::string& lane, int fd,
                                                     const KvPages& pages, KvStorage* kv) {
    auto way = std::unique_ptr<LaneSender>(new LaneSender(fd, pages));
    KvSenderOptions options;
    options.lanes = {lane};
    ASSIGN_OR_RETURN(way->sender_, KvSender::Create(options, kv, &way->clock_));
    SendText(fd, ToProto(way->sender_->MakeHello()).SerializeAsString());
    handoff::v1::HelloResponse answer;
    if (!answer.ParseFromString(ReceiveText(fd)) || answer.peer_token() == 0) {
      return absl::UnavailableError("the receiver gave no introduction");
    }
    way->token_ = answer.peer_token();
    way->sender_->Connect(FromProto(answer));
    return way;
  }
  absl::Status Move() override {
    const AttemptKey key{"bench", ++attempt_};
    ASSIGN_OR_RETURN(const uint64_t session, ReceiveNumber(fd_));
    const auto blocks = static_cast<int>(pages_.from.size());
    auto result = Await<absl::StatusOr<KvSendResult>>([&](auto done) {
      sender_->Prepare(key, blocks, done);
      sender_->Begin(key, token_, session, std::vector<uint32_t>(blocks, 1));
      for (int l = 0; l < pages_.layout.layers; ++l) sender_->Push(key, l, 0, pages_.from);
    });
    SendText(fd_, absl::StrCat(result.ok() ? result->digest : 0));
    RETURN_IF_ERROR(result.status());
    return Expect(fd_, "OK");
  }

 private:
  LaneSender(int fd, const KvPages& pages) : fd_(fd), pages_(pages) {}
  const int fd_;
  const KvPages& pages_;
  MonotonicClock clock_;
  std::unique_ptr<KvSender> sender_;
  uint64_t token_ = 0;
  int attempt_ = 0;
};

class LaneReceiver final : public KvWay {
 public:
  static absl::StatusOr<std::unique_ptr<KvWay>> Make(const std::string& lane, int fd,
                                                     const KvPages& pages) {
    auto way = std::unique_ptr<LaneReceiver>(new LaneReceiver(fd, pages));
    KvReceiverOptions options;
    options.lanes = {lane};
    ASSIGN_OR_RETURN(way->receiver_,
                     KvReceiver::Create(options, &way->kv_, &way->clock_,
                                        [](const KvTarget&, bool, const absl::Status&) {}));
    handoff::v1::HelloRequest hello;
    if (!hello.ParseFromString(ReceiveText(fd))) {
      return absl::UnavailableError("the sender said no Hello");
    }
    auto answer = Await<absl::StatusOr<KvHelloAnswer>>(
        [&](auto done) { way->receiver_->Hello(FromProto(hello), done); });
    SendText(fd, answer.ok() ? ToProto(*answer).SerializeAsString() : "");
    RETURN_IF_ERROR(answer.status());
    way->token_ = answer->peer_token;
    return way;
  }
  absl::Status Move() override {
    const auto blocks = static_cast<int>(pages_.to.size());
    const KvTarget target{{"bench", ++attempt_},
                          blocks * pages_.layout.block_tokens,
                          pages_.to,
                          std::vector<uint32_t>(blocks, 1)};
    auto session =
        Await<absl::StatusOr<uint64_t>>([&](auto done) { receiver_->Open(token_, target, done); });
    SendText(fd_, session.ok() ? absl::StrCat(*session) : session.status().ToString());
    RETURN_IF_ERROR(session.status());
    ASSIGN_OR_RETURN(const uint64_t digest, ReceiveNumber(fd_));
    auto committed = Await<absl::StatusOr<KvTarget>>(
        [&](auto done) { receiver_->Commit(token_, *session, digest, absl::Seconds(30), done); });
    SendText(fd_, committed.status().ToString());
    return committed.status();
  }
  const std::byte* received() const override { return kv_.Layer(0); }

 private:
  LaneReceiver(int fd, const KvPages& pages)
      : fd_(fd), pages_(pages), kv_(pages.layout, static_cast<int>(pages.to.size())) {}
  const int fd_;
  const KvPages& pages_;
  MonotonicClock clock_;
  KvStorage kv_;
  std::unique_ptr<KvReceiver> receiver_;
  uint64_t token_ = 0;
  int attempt_ = 0;
};

// ---- the receiver's memory, by put or by stores
class MemorySender final : public KvWay {
 public:
  static absl::StatusOr<std::unique_ptr<KvWay>> Make(const std::string& transport, bool raw, int fd,
                                                     const KvPages& pages, KvStorage* kv) {
    auto way = std::unique_ptr<MemorySender>(new MemorySender(fd, pages, kv));
    const std::string address = ReceiveText(fd), rkey = ReceiveText(fd);
    ASSIGN_OR_RETURN(const uint64_t base, ReceiveNumber(fd));
    ASSIGN_OR_RETURN(way->source_, PutSource::Create(transport, address, rkey, base));
    if (raw) {
      ASSIGN_OR_RETURN(way->mapped_, way->source_->Map());
    }
    return way;
  }
  absl::Status Move() override {
    const size_t bytes = pages_.layout.BlockBytes();
    ForEachBlock(pages_, [&](int layer, BlockId from, size_t to) {
      const std::byte* block = kv_->Block(layer, from.value());
      if (mapped_ != nullptr) {
        CopyNonTemporal(mapped_ + to, block, bytes);
      } else {
        source_->Put({block, bytes}, to);
      }
    });
    if (mapped_ != nullptr) {
      FenceStores();
    } else {
      RETURN_IF_ERROR(source_->Flush());
    }
    SendText(fd_, "bell");
    return Expect(fd_, "OK");
  }

 private:
  MemorySender(int fd, const KvPages& pages, KvStorage* kv) : fd_(fd), pages_(pages), kv_(kv) {}
  const int fd_;
  const KvPages& pages_;
  KvStorage* const kv_;
  std::unique_ptr<PutSource> source_;
  std::byte* mapped_ = nullptr;
};

class MemoryReceiver final : public KvWay {
 public:
  static absl::StatusOr<std::unique_ptr<KvWay>> Make(const std::string& transport, int fd,
                                                     const KvPages& pages) {
    auto way = std::unique_ptr<MemoryReceiver>(new MemoryReceiver(fd, transport == "tcp"));
    ASSIGN_OR_RETURN(way->target_, PutTarget::Create(transport, pages.bytes()));
    SendText(fd, way->target_->address());
    SendText(fd, way->target_->rkey());
    SendText(fd, absl::StrCat(reinterpret_cast<uintptr_t>(way->target_->bytes().data())));
    return way;
  }
  absl::Status Move() override {
    pollfd bell = {fd_, POLLIN, 0};
    while (poll(&bell, 1, progress_ ? 0 : -1) == 0) target_->Progress();
    RETURN_IF_ERROR(Expect(fd_, "bell"));
    SendText(fd_, "OK");
    return absl::OkStatus();
  }
  const std::byte* received() const override { return target_->bytes().data(); }

 private:
  MemoryReceiver(int fd, bool progress) : fd_(fd), progress_(progress) {}
  const int fd_;
  const bool progress_;
  std::unique_ptr<PutTarget> target_;
};

// ---- bytes over a socket, in one piece: the receiver's cache is an image of the sender's
class SocketWay final : public KvWay {
 public:
  static absl::StatusOr<std::unique_ptr<KvWay>> Make(bool sender, int fd, const KvPages& pages,
                                                     KvStorage* kv) {
    auto way = std::unique_ptr<SocketWay>(new SocketWay(fd, pages.bytes()));
    if (sender) {
      ASSIGN_OR_RETURN(const uint64_t port, ReceiveNumber(fd));
      way->pipe_ = ConnectLoopback(static_cast<uint16_t>(port));
      way->from_ = kv->Layer(0);
    } else {
      ASSIGN_OR_RETURN(const LoopbackListener listener, LoopbackListener::Create());
      SendText(fd, absl::StrCat(listener.port()));
      way->pipe_ = listener.Accept();
      way->to_.resize(pages.bytes());
    }
    if (way->pipe_ == nullptr) return absl::UnavailableError("no loopback connection");
    return way;
  }
  absl::Status Move() override {
    Whole(bytes_, [&](size_t at) {
      const size_t n = std::min(kSocketChunk, bytes_ - at);
      return to_.empty() ? pipe_->Write(from_ + at, n) : pipe_->Read(to_.data() + at, n);
    });
    if (to_.empty()) return Expect(fd_, "OK");
    SendText(fd_, "OK");
    return absl::OkStatus();
  }

 private:
  SocketWay(int fd, size_t bytes) : fd_(fd), bytes_(bytes) {}
  const int fd_;
  const size_t bytes_;
  std::unique_ptr<Pipe> pipe_;
  const std::byte* from_ = nullptr;
  std::vector<std::byte> to_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<KvWay>> MakeKvWay(const std::string& name, bool sender, int fd,
                                                 const KvPages& pages, KvStorage* kv) {
  if (name == "shm" || name == "tcp") {
    return sender ? LaneSender::Make(name, fd, pages, kv) : LaneReceiver::Make(name, fd, pages);
  }
  if (name == "socket") return SocketWay::Make(sender, fd, pages, kv);
  const bool raw = name == "raw shm";
  if (!raw && name != "put posix" && name != "put tcp") {
    return absl::InvalidArgumentError(absl::StrCat("no way is called \"", name, "\""));
  }
  const std::string transport = name == "put tcp" ? "tcp" : "posix";
  return sender ? MemorySender::Make(transport, raw, fd, pages, kv)
                : MemoryReceiver::Make(transport, fd, pages);
}

}  // namespace switchyard
