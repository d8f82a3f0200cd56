// router/answer_text.h: from accepted tokens to text that is final: whole characters, and nothing
// that could begin a stop string. One per request; not thread-safe.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "common/ids.h"
#include "router/router.h"
#include "router/stop_matcher.h"
#include "text/tokenizer.h"

namespace switchyard {

class AnswerText {
 public:
  // `tokenizer` must outlive it; null: all text is empty.
  AnswerText(const Tokenizer* tokenizer, const ClientRequest& request)
      : min_tokens_(request.min_tokens), matcher_(request.stop, request.include_stop) {
    if (tokenizer != nullptr) detokenizer_.emplace(tokenizer, request.skip_special_tokens);
  }

  // After a match, or Finish, no more may be pushed.
  StopMatcher::Result Push(TokenId token) {
    if (!detokenizer_) return {};
    return matcher_.Push(detokenizer_->Push(token), /*may_stop=*/++tokens_ > min_tokens_);
  }
  // What was held back; a stop string may end in it.
  StopMatcher::Result Finish() {
    if (!detokenizer_) return {};
    StopMatcher::Result last = matcher_.Push(detokenizer_->Finish(), tokens_ > min_tokens_);
    if (!last.match) last.text += matcher_.Finish();
    return last;
  }

 private:
  const int min_tokens_;
  int tokens_ = 0;
  std::optional<DetokenizerStream> detokenizer_;
  StopMatcher matcher_;
};

}  // namespace switchyard
