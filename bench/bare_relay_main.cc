// usage: bare_relay_main WORKER PORT: what relaying costs in gRPC alone: each token that WORKER
// (host:port) streams goes out as a message of its own on the client's stream. No router: no text,
// queue, retries, metrics or limits, a worker that is there and ends every request. One thread and
// one completion queue, without locks: nothing wakes anybody. The ceiling for a router on gRPC.
#include <grpcpp/grpcpp.h>

#include <cstdio>
#include <cstdlib>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "cluster/convert.h"
#include "cluster/grpc_server.h"
#include "proto/cluster.grpc.pb.h"
#include "proto/inference.grpc.pb.h"

namespace switchyard {
namespace {

namespace pb = cluster::v1;
using Tag = std::function<void(bool ok)>;
using Service = v1::Router::WithAsyncMethod_Generate<
    v1::Router::WithAsyncMethod_GetModelInfo<v1::Router::Service>>;

class Relay {
 public:
  Relay(const std::string& worker, const std::string& address) : worker_(worker) {
    grpc::ServerBuilder builder;
    builder.AddListeningPort(address, grpc::InsecureServerCredentials());
    builder.RegisterService(&service_);
    cq_ = builder.AddCompletionQueue();
    server_ = builder.BuildAndStart();
  }
  bool listens() const { return server_ != nullptr; }

  void Run() {
    Dial();
    AcceptInfo();
    AcceptStream();
    void* tag;
    for (bool ok; cq_->Next(&tag, &ok);) (*static_cast<Tag*>(tag))(ok);
  }

 private:
  struct Stream {
    grpc::ServerContext context;
    v1::GenerateRequest request;
    v1::GenerateResponse response;
    grpc::ServerAsyncWriter<v1::GenerateResponse> writer{&context};
    Tag accepted, written, finished;
    std::string id;
    std::deque<std::pair<int, bool>> tokens;  // and whether it is the last
    bool writing = false;
  };
  struct Info {
    grpc::ServerContext context;
    v1::GetModelInfoRequest request;
    grpc::ServerAsyncResponseWriter<v1::ModelInfo> writer{&context};
    Tag accepted, finished;
  };

  void Dial() {
    worker_stub_ = pb::Worker::NewStub(DialChannel(worker_));
    opened_ = [this](bool ok) {
      if (!ok) return Lost();
      pb::ToWorker hello;
      hello.mutable_hello()->set_wire_version(kClusterWireVersion);
      hello.mutable_hello()->set_router_id("bare");
      Send(std::move(hello));
      session_->Read(&from_worker_, &read_);
    };
    read_ = [this](bool ok) {
      if (!ok) return Lost();
      for (const pb::AttemptEvent& e : from_worker_.events().events()) {
        const auto it = streams_.find(e.id().request());
        if (it == streams_.end()) continue;
        it->second->tokens.emplace_back(e.token().token(), e.finish() != pb::FINISH_NONE);
        Write(*it->second);
      }
      session_->Read(&from_worker_, &read_);
    };
    sent_ = [this](bool ok) {
      if (!ok) return Lost();
      unsent_.pop_front();
      if (!unsent_.empty()) session_->Write(unsent_.front(), &sent_);
    };
    session_ = worker_stub_->AsyncSession(&worker_context_, cq_.get(), &opened_);
  }
  void Send(pb::ToWorker message) {
    unsent_.push_back(std::move(message));
    if (unsent_.size() == 1) session_->Write(unsent_.front(), &sent_);
  }
  [[noreturn]] void Lost() {
    std::fprintf(stderr, "the worker at %s is away\n", worker_.c_str());
    std::exit(1);
  }

  void AcceptInfo() {
    auto* info = new Info;
    info->accepted = [this, info](bool ok) {
      if (!ok) return;
      AcceptInfo();
      v1::ModelInfo model;
      model.set_id("bare");
      model.set_vocab_size(4096);
      model.set_max_model_len(2048);
      info->writer.Finish(model, grpc::Status::OK, &info->finished);
    };
    info->finished = [info](bool) { delete info; };
    service_.RequestGetModelInfo(&info->context, &info->request, &info->writer, cq_.get(),
                                 cq_.get(), &info->accepted);
  }
  void AcceptStream() {
    auto owned = std::make_unique<Stream>();
    Stream* const s = owned.get();
    s->id = absl::StrCat("bare-", ++last_);
    streams_[s->id] = std::move(owned);
    s->accepted = [this, s](bool ok) {
      if (!ok) return;
      AcceptStream();
      pb::ToWorker message;
      pb::Submit& submit = *message.mutable_submit();
      ToProto(AttemptKey{s->id, 1}, submit.mutable_id());
      submit.mutable_prompt_ids()->CopyFrom(s->request.tokens().ids());
      submit.set_max_tokens(s->request.max_tokens());
      submit.set_ignore_eos(true);
      submit.set_prompt_logprobs(-1);
      submit.mutable_sampling()->set_logprobs(-1);
      Send(std::move(message));
    };
    s->written = [this, s](bool) {
      s->writing = false;
      Write(*s);
    };
    s->finished = [this, s](bool) { streams_.erase(std::string(s->id)); };
    service_.RequestGenerate(&s->context, &s->request, &s->writer, cq_.get(), cq_.get(),
                             &s->accepted);
  }
  void Write(Stream& s) {
    if (s.writing || s.tokens.empty()) return;
    const auto [token, last] = s.tokens.front();
    s.tokens.pop_front();
    s.response.Clear();
    s.response.set_request_id(s.id);
    s.response.add_token_ids(token);
    s.writing = true;
    if (!last) return s.writer.Write(s.response, &s.written);
    s.response.set_finish_reason(v1::FINISH_REASON_LENGTH);
    s.writer.WriteAndFinish(s.response, grpc::WriteOptions(), grpc::Status::OK, &s.finished);
  }

  const std::string worker_;
  Service service_;
  std::unique_ptr<grpc::ServerCompletionQueue> cq_;
  std::unique_ptr<grpc::Server> server_;
  std::unique_ptr<pb::Worker::Stub> worker_stub_;
  grpc::ClientContext worker_context_;
  std::unique_ptr<grpc::ClientAsyncReaderWriter<pb::ToWorker, pb::FromWorker>> session_;
  pb::FromWorker from_worker_;
  std::deque<pb::ToWorker> unsent_;  // the first is being written
  Tag opened_, read_, sent_;
  uint64_t last_ = 0;
  std::unordered_map<std::string, std::unique_ptr<Stream>> streams_;
};

}  // namespace
}  // namespace switchyard

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fputs("usage: bare_relay_main WORKER PORT\n", stderr);
    return 2;
  }
  switchyard::Relay relay(argv[1], std::string("127.0.0.1:") + argv[2]);
  if (!relay.listens()) return 1;
  relay.Run();
}
