#include "router/grpc_streams.h"

#include <algorithm>
#include <deque>
#include <optional>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "cluster/convert.h"
#include "common/telemetry/trace.h"
#include "router/grpc_convert.h"
#include "router/validate.h"

namespace switchyard {
namespace {

constexpr char kFieldKey[] = "field";  // metadata: what an INVALID_ARGUMENT is about
constexpr int kTakers = 2;             // threads that tokenize
constexpr int kCallsOpen = 16;         // that gRPC may hand out before the next is asked for

std::string_view Traceparent(const grpc::ServerContext& context) {
  const auto it = context.client_metadata().find("traceparent");
  if (it == context.client_metadata().end()) return {};
  return {it->second.data(), it->second.size()};
}

}  // namespace

// One Generate call. The queues hold it from Await until the last events have come, the core until
// the last update of the last answer; whichever is later frees it.
class GrpcStreams::Stream final : public std::enable_shared_from_this<Stream> {
 public:
  explicit Stream(GrpcStreams* streams)
      : streams_(*streams),
        core_(streams->options_.core),
        taken_([this](bool ok) { OnTaken(ok); }),
        written_([this](bool ok) { OnWritten(ok); }),
        finished_tag_([this](bool) { Leave(); }),
        over_([this](bool) { OnOver(); }),
        cut_([this](bool due) { OnCut(due); }) {}

  // Asks for a call to be.
  static void Await(GrpcStreams* streams) {
    const auto stream = std::make_shared<Stream>(streams);
    {
      MutexLock lock(streams->mu_);
      ++streams->open_;
      ++streams->waiting_;
    }
    MutexLock lock(stream->mu_);
    stream->self_ = stream;
    stream->context_.AsyncNotifyWhenDone(&stream->over_);
    streams->options_.service->RequestGenerate(&stream->context_, &stream->request_,
                                               &stream->writer_, &streams->writes_,
                                               &streams->calls_, &stream->taken_);
  }
  // On the writing thread, after Schedule.
  void OnScheduled() {
    Abort([this] {
      MutexLock lock(mu_);
      scheduled_ = false;
      return Pump();
    }());
  }

 private:
  struct Answer {
    std::string id;      // the core's; empty before it was told, and once it need not be aborted
    bool ended = false;  // the core has sent the last update: the id may be another request's
    ClientUpdate pending;
    size_t updates = 0;  // that `pending` is made of; 0: none
  };

  // A call has come, or (not `ok`) none will.
  void OnTaken(bool ok) {
    {
      MutexLock lock(streams_.mu_);
      --streams_.waiting_;
    }
    if (!ok) return Release();
    const auto keep = shared_from_this();  // the writing thread may see the call's end meanwhile
    Await(&streams_);
    Begin();
  }
  void Begin() {
    if (absl::Status allowed = streams_.options_.check(context_); !allowed.ok()) {
      return Refuse(allowed);
    }
    const auto until = context_.deadline();
    const absl::Duration deadline =
        until == std::chrono::system_clock::time_point::max()
            ? absl::InfiniteDuration()
            : absl::FromChrono(until - std::chrono::system_clock::now());
    if (absl::Status admitted = core_->CheckAdmission(request_.priority(), deadline);
        !admitted.ok()) {
      return Refuse(admitted);
    }
    absl::StatusOr<std::vector<ClientRequest>> answers =
        FromProto(request_, core_->model(), core_->limits(), core_->tokenizer());
    if (!answers.ok()) return Refuse(answers.status());
    with_logprobs_ = request_.has_logprobs();
    request_.Clear();  // the prompt may be long
    if (answers->front().prompt_logprobs >= 0) prompt_ids_ = answers->front().prompt_ids;
    {
      MutexLock lock(mu_);
      answers_.resize(answers->size());
      open_ = answers->size();
    }
    const auto trace = ParseTraceparent(Traceparent(context_));
    for (size_t i = 0; i < answers->size(); ++i) {
      ClientRequest& client = (*answers)[i];
      client.deadline = std::min(client.deadline, deadline);
      client.trace = trace;
      absl::StatusOr<std::string> id =
          core_->Submit(std::move(client), [stream = shared_from_this(), i](ClientUpdate update) {
            stream->Push(i, std::move(update));
          });
      if (!id.ok()) return Refuse(id.status());
      MutexLock lock(mu_);
      answers_[i].id = *std::move(id);
      if (cancelled_) break;
    }
    Abort([this] {
      MutexLock lock(mu_);
      begun_ = true;
      return Pump();
    }());
  }
  void Refuse(const absl::Status& status) {
    if (const absl::Duration after = RetryAfter(status); after > absl::ZeroDuration()) {
      context_.AddTrailingMetadata(kRetryAfterKey, absl::StrCat(absl::ToInt64Milliseconds(after)));
    }
    if (const auto field = status.GetPayload(kFieldPayload)) {
      context_.AddTrailingMetadata(kFieldKey, std::string(*field));
    }
    Abort([&] {
      MutexLock lock(mu_);
      End(ToGrpc(status));
      return Pump();
    }());
  }

  void OnWritten(bool ok) {
    Abort([&] {
      MutexLock lock(mu_);
      writing_ = false;
      cancelled_ |= !ok;
      return Pump();
    }());
  }
  // The call is over: by Finish, or because the client is gone.
  void OnOver() {
    Abort([this] {
      MutexLock lock(mu_);
      cancelled_ |= !finished_;
      over_came_ = true;
      if (cut_set_) cut_alarm_.Cancel();
      return Pump();
    }());
    Leave();
  }
  // A write that the client's window holds up would never end.
  void OnCut(bool due) {
    if (due) context_.TryCancel();
    Leave();
  }
  // Each event that is awaited comes once, in any order.
  void Leave() {
    {
      MutexLock lock(mu_);
      if (--awaited_ > 0) return;
    }
    Release();
  }
  void Release() {
    std::shared_ptr<Stream> last;
    {
      MutexLock lock(mu_);
      last = std::move(self_);
    }
    streams_.Leave();
  }

  // Not under mu_: the core may be waiting for it in Push.
  void Abort(const std::vector<std::string>& ids) {
    for (const std::string& id : ids) core_->Abort(id);
  }

  // On the core's thread.
  void Push(size_t answer, ClientUpdate update) {
    // The first token does not wait for another thread; a long prompt's scores do.
    const bool now = update.first && update.prompt_logprobs.empty();
    Abort([&]() -> std::vector<std::string> {
      MutexLock lock(mu_);
      if (!Queue(answer, std::move(update))) return {};
      if (now && begun_) return Pump();
      scheduled_ = true;
      streams_.Schedule(shared_from_this());  // under mu_: not after the last Finish
      return {};
    }());
  }
  // Whether the stream is to be looked at.
  bool Queue(size_t answer, ClientUpdate update) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    const bool last = update.finish != ClientUpdate::Finish::kNone;
    Answer& a = answers_[answer];
    ended_ += last && !a.ended;
    a.ended |= last;
    if (finished_ || cancelled_) return false;
    if (a.updates == streams_.options_.queued_updates_max && !last) {
      cancelled_ = too_slow_ = true;
    } else if (a.updates++ > 0) {
      Append(std::move(update), &a.pending);
    } else {
      a.pending = std::move(update);
      queue_.push_back(answer);
    }
    // What is being written calls for the next when it is done.
    return !scheduled_ && (!writing_ || cancelled_ || last);
  }

  void End(const grpc::Status& status) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    if (std::exchange(finished_, true)) return;
    writer_.Finish(status, &finished_tag_);
  }

  // Writes the next update, or finishes once the last one is written. Not before Submit has told
  // the ids, which the responses carry. Returns the requests that nobody waits for any more.
  std::vector<std::string> Pump() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    if (cancelled_ && begun_ && !writing_) {
      End(too_slow_
              ? grpc::Status(
                    grpc::RESOURCE_EXHAUSTED,
                    absl::StrCat("the client does not read: ", streams_.options_.queued_updates_max,
                                 " updates wait, the limit"))
              : grpc::Status::CANCELLED);
    }
    if (!finished_ && !cancelled_ && begun_ && !writing_ && !queue_.empty()) {
      const size_t answer = queue_.front();
      queue_.pop_front();
      answers_[answer].updates = 0;
      Write(answer, std::exchange(answers_[answer].pending, {}));
    }
    // The core has forgotten an ended request: nothing else bounds how long a client that does not
    // read keeps its answer here.
    const bool over = finished_ || ended_ == answers_.size();
    if (begun_ && (too_slow_ || over) && !over_came_ && !std::exchange(cut_set_, true)) {
      ++awaited_;
      const absl::Duration grace =
          too_slow_ ? streams_.options_.unread_grace : streams_.options_.ended_grace;
      cut_alarm_.Set(&streams_.writes_, absl::ToChronoTime(absl::Now() + grace), &cut_);
    }
    std::vector<std::string> aborts;
    if (!finished_ && !cancelled_) return aborts;
    queue_.clear();
    for (Answer& a : answers_) {
      if (!a.ended && !a.id.empty()) aborts.push_back(std::exchange(a.id, ""));
    }
    return aborts;
  }

  void Write(size_t answer, const ClientUpdate& update) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    const bool failed = update.finish == ClientUpdate::Finish::kError;
    if (failed && update.tokens.empty() && update.text.empty()) return End(ToGrpc(update.error));
    v1::GenerateResponse response =
        ToProto(update, answers_[answer].id, with_logprobs_, core_->tokenizer());
    response.set_index(static_cast<int>(answer));
    if (update.first) {
      response.mutable_prompt_token_ids()->Add(prompt_ids_.begin(), prompt_ids_.end());
    }
    if (update.finish != ClientUpdate::Finish::kNone) --open_;
    if (!failed && open_ > 0) {
      writing_ = true;
      return writer_.Write(response, &written_);
    }
    finished_ = true;
    writer_.WriteAndFinish(response, grpc::WriteOptions(), ToGrpc(update.error), &finished_tag_);
  }

  GrpcStreams& streams_;
  RouterCore* const core_;
  Tag taken_, written_, finished_tag_, over_, cut_;
  grpc::Alarm cut_alarm_;
  grpc::ServerContext context_;
  v1::GenerateRequest request_;
  grpc::ServerAsyncWriter<v1::GenerateResponse> writer_{&context_};
  bool with_logprobs_ = false;
  PromptIds prompt_ids_;  // if they are part of the answer

  Mutex mu_;
  std::shared_ptr<Stream> self_ ABSL_GUARDED_BY(mu_);
  std::vector<Answer> answers_ ABSL_GUARDED_BY(mu_);
  size_t open_ ABSL_GUARDED_BY(mu_) = 0;           // answers whose end is not written
  size_t ended_ ABSL_GUARDED_BY(mu_) = 0;          // answers whose end has come
  std::deque<size_t> queue_ ABSL_GUARDED_BY(mu_);  // answers that have something pending
  bool begun_ ABSL_GUARDED_BY(mu_) = false;        // every answer was submitted
  bool scheduled_ ABSL_GUARDED_BY(mu_) = false;    // the writing thread will look at it
  bool writing_ ABSL_GUARDED_BY(mu_) = false;
  bool cancelled_ ABSL_GUARDED_BY(mu_) = false;
  bool too_slow_ ABSL_GUARDED_BY(mu_) = false;
  bool finished_ ABSL_GUARDED_BY(mu_) = false;
  bool over_came_ ABSL_GUARDED_BY(mu_) = false;
  bool cut_set_ ABSL_GUARDED_BY(mu_) = false;
  int awaited_ ABSL_GUARDED_BY(mu_) = 2;  // Finish's event, the end of the call, a cut's
};

GrpcStreams::GrpcStreams(Options options)
    : options_(std::move(options)),
      calls_(options_.server->queue(0)),
      writes_(options_.server->queue(1)),
      wake_([this](bool) { WriteReady(); }) {
  for (int i = 0; i < kCallsOpen; ++i) Stream::Await(this);
  for (int i = 0; i < kTakers; ++i) threads_.emplace_back([this] { Serve(&calls_); });
  threads_.emplace_back([this] { Serve(&writes_); });
}

GrpcStreams::~GrpcStreams() {
  options_.server->Shutdown();
  {
    MutexLock lock(mu_);  // their last events are still to come
    while (open_ > 0) left_.Wait(mu_);
  }
  calls_.Shutdown();
  writes_.Shutdown();
  for (std::thread& thread : threads_) thread.join();
}

void GrpcStreams::Serve(grpc::ServerCompletionQueue* queue) {
  void* tag;
  for (bool ok; queue->Next(&tag, &ok);) (*static_cast<Tag*>(tag))(ok);
}

void GrpcStreams::Schedule(std::shared_ptr<Stream> stream) {
  MutexLock lock(mu_);
  ready_.push_back(std::move(stream));
  if (std::exchange(woken_, true)) return;
  alarm_.Set(&writes_, gpr_time_0(GPR_CLOCK_MONOTONIC), &wake_);
}

int GrpcStreams::running() {
  MutexLock lock(mu_);
  return open_ - waiting_;
}

void GrpcStreams::Leave() {
  MutexLock lock(mu_);
  if (--open_ == 0) left_.NotifyAll();
}

void GrpcStreams::WriteReady() {
  std::vector<std::shared_ptr<Stream>> ready;
  {
    MutexLock lock(mu_);
    woken_ = false;
    ready.swap(ready_);
  }
  for (const auto& stream : ready) stream->OnScheduled();
}

}  // namespace switchyard
