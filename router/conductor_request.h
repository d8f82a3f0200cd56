// router/conductor_request.h: one request inside the conductor.
#pragma once

#include <algorithm>
#include <optional>
#include <string>

#include "router/answer_text.h"
#include "router/conductor.h"
#include "router/request_trace.h"

namespace switchyard {

struct Conductor::Request {
  Request(uint64_t number, std::string id, std::string wire_id, ClientRequest client, Sink sink,
          const CoreOptions& options, absl::Time now, std::mt19937_64* rng, SpanSink* spans)
      : number(number),
        id(std::move(id)),
        wire_id(std::move(wire_id)),
        client(std::move(client)),
        sink(std::move(sink)),
        arrival(now),
        deadline(now + std::min(options.limits.deadline, this->client.deadline)),
        waiting_since(now),
        attempts(this->client.max_tokens, options.attempts, rng),
        text(options.tokenizer, this->client),
        trace(spans, this->client.trace, now) {}

  int64_t tokens() const {
    return static_cast<int64_t>(client.prompt_ids.size() + attempts.generated().size());
  }

  const uint64_t number;
  const std::string id;       // the client's
  const std::string wire_id;  // the workers': unique over routers
  ClientRequest client;
  Sink sink;
  const absl::Time arrival, deadline;
  absl::Time waiting_since;
  RequestAttempts attempts;
  AnswerText text;
  RequestTrace trace;

  bool first_sent = false;
  std::optional<ClientUpdate> unsent;  // goes out at the end of the turn
  int cached_tokens = 0;
  int completion_tokens = 0;  // up to a stop string's last token, held ones included
  absl::Time dispatched = absl::InfiniteFuture();  // the first attempt began
  absl::Time first_token = absl::InfiniteFuture(), last_token;
  PrefixMap::Chain chain;         // of prompt and generated tokens, as far as they were known
  std::optional<Route> assigned;  // what the pool counts for it
  bool served = false;            // and knows that a token came from its decode worker
  bool settled = false;           // and that a token came
  bool waiting = false;           // is in waiting_
  std::string prefill_worker, decode_worker;
  absl::Time timer = absl::InfiniteFuture();  // its entry in timers_
};

}  // namespace switchyard
