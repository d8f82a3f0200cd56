// router/http/openai_job.h: one client's call while the router works on it.
#pragma once

#include <atomic>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "common/mutex.h"
#include "common/net/http_server.h"
#include "router/http/openai_response.h"
#include "router/router.h"

namespace switchyard {

// The core's thread only leaves its updates here; they become JSON on the connection's I/O thread.
class OpenAiJob : public std::enable_shared_from_this<OpenAiJob> {
 public:
  // `id` names the answer, and with a batch's index the core's requests. `core` must outlive the
  // connection; the job may outlive both once the client has its answer.
  OpenAiJob(RouterCore* core, ApiRequest request, std::string id,
            std::shared_ptr<HttpResponder> responder);

  // Submits every choice, or none: if the core refuses one, the others are aborted and the client
  // gets its reason; so it does if one fails later. In the responder's handler.
  void Start();

 private:
  // The core's knowledge of a choice's id. Before and after, the name may be another request's.
  enum class Phase { kNew, kRunning, kEnded };
  struct Update {
    size_t choice;
    ClientUpdate update;
  };

  void OnUpdate(size_t choice, ClientUpdate update);  // the core's thread
  void Work();                                        // the connection's strand
  void Answer(Update update);
  void Abort();

  RouterCore* const core_;
  const std::string id_;
  const std::vector<std::string> request_ids_;
  std::atomic<bool> client_gone_ = false;

  // Strand.
  ApiAnswer answer_;
  bool streaming_ = false, answered_ = false;

  Mutex mu_;
  std::vector<Phase> phases_ ABSL_GUARDED_BY(mu_);                 // by choice
  std::shared_ptr<HttpResponder> responder_ ABSL_GUARDED_BY(mu_);  // null: answered
  std::vector<Update> updates_ ABSL_GUARDED_BY(mu_);  // bounded by the tokens of the requests
  bool work_posted_ ABSL_GUARDED_BY(mu_) = false;
};

}  // namespace switchyard
