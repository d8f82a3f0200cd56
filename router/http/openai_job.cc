#include "router/http/openai_job.h"

#include "absl/strings/str_cat.h"
#include "common/random_word.h"
#include "router/samples.h"

namespace switchyard {
namespace {

ApiRequest WithSeeds(ApiRequest request) {
  ShareSeeds(RandomWord, &request.choices);
  return request;
}

std::vector<std::string> RequestIds(const std::string& id, size_t choices) {
  if (choices == 1) return {id};
  std::vector<std::string> out;
  for (size_t i = 0; i < choices; ++i) out.push_back(absl::StrCat(id, "-", i));
  return out;
}

HttpResponse EventStream(std::string events) {
  return {.status = 200,
          .content_type = "text/event-stream; charset=utf-8",
          .body = std::move(events),
          .headers = {{"Cache-Control", "no-cache"}, {"X-Accel-Buffering", "no"}}};
}

}  // namespace

OpenAiJob::OpenAiJob(RouterCore* core, ApiRequest request, std::string id,
                     std::shared_ptr<HttpResponder> responder)
    : core_(core),
      id_(std::move(id)),
      request_ids_(RequestIds(id_, request.choices.size())),
      answer_(WithSeeds(std::move(request)), id_, core->model().id,
              absl::ToUnixSeconds(absl::Now()), core->tokenizer()),
      phases_(request_ids_.size(), Phase::kNew),
      responder_(std::move(responder)) {}

void OpenAiJob::Abort() {
  std::vector<std::string> running;
  {
    MutexLock lock(mu_);
    for (size_t i = 0; i < phases_.size(); ++i) {
      if (phases_[i] == Phase::kRunning) running.push_back(request_ids_[i]);
    }
  }
  for (const std::string& id : running) core_->Abort(id);
}

void OpenAiJob::Start() {
  std::shared_ptr<HttpResponder> responder;
  {
    MutexLock lock(mu_);
    responder = responder_;
  }
  responder->OnDisconnect([self = shared_from_this()] {
    self->client_gone_ = true;
    self->Abort();
  });
  const std::vector<ClientRequest>& choices = answer_.request().choices;
  for (size_t i = 0; i < choices.size() && !client_gone_; ++i) {
    ClientRequest request = choices[i];
    request.request_id = request_ids_[i];
    const auto id =
        core_->Submit(std::move(request), [self = shared_from_this(), i](ClientUpdate update) {
          self->OnUpdate(i, std::move(update));
        });
    if (!id.ok()) {
      Abort();
      answered_ = true;
      responder->Send(WithRequestId(id_, ErrorResponse(id.status())));
      MutexLock lock(mu_);
      responder_ = nullptr;
      return;
    }
    {
      MutexLock lock(mu_);
      if (phases_[i] == Phase::kNew) phases_[i] = Phase::kRunning;
    }
    // The client may have gone while the choice was not running yet.
    if (client_gone_) Abort();
  }
}

void OpenAiJob::OnUpdate(size_t choice, ClientUpdate update) {
  MutexLock lock(mu_);
  if (update.finish != ClientUpdate::Finish::kNone) phases_[choice] = Phase::kEnded;
  if (responder_ == nullptr) return;
  updates_.push_back({choice, std::move(update)});
  if (work_posted_) return;
  work_posted_ = responder_->Run([self = shared_from_this()] { self->Work(); });
  if (!work_posted_) updates_.clear();  // nobody is there to be told
}

void OpenAiJob::Work() {
  std::vector<Update> updates;
  {
    MutexLock lock(mu_);
    work_posted_ = false;
    updates.swap(updates_);
  }
  for (Update& update : updates) {
    if (answered_) return;
    Answer(std::move(update));
  }
}

void OpenAiJob::Answer(Update update) {
  std::shared_ptr<HttpResponder> responder;
  {
    MutexLock lock(mu_);
    responder = responder_;
  }
  std::string events = answer_.Take(update.choice, std::move(update.update));
  // One choice's error is the answer's: nobody waits for the others.
  answered_ = answer_.done() || !answer_.error().ok();
  // An error before anything was sent can still be said in the status line.
  const bool failed = answered_ && !streaming_ && !answer_.error().ok();
  if (failed) {
    responder->Send(WithRequestId(id_, ErrorResponse(answer_.error())));
  } else if (!answer_.request().stream) {
    if (!answered_) return;
    responder->Send(WithRequestId(id_, {.status = 200,
                                        .content_type = "application/json",
                                        .body = answer_.Body(),
                                        .headers = {}}));
  } else {
    if (answered_) events += answer_.Tail();
    if (events.empty()) return;
    if (streaming_) {
      responder->Write(events);
    } else {
      streaming_ = true;
      responder->StartStream(WithRequestId(id_, EventStream(std::move(events))));
    }
    if (answered_) responder->End();
  }
  if (!answered_) return;
  if (!answer_.error().ok()) Abort();
  MutexLock lock(mu_);
  responder_ = nullptr;
}

}  // namespace switchyard
