// router/answer_text.h: from accepted tokens to text that is final: whole characters, and nothing
// that could begin a stop string. One per request; not thread-safe.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "common/ids.h"
#include "router/stop_matcher.h"
#include "text/tokenizer.h"

namespace switchyard {

class AnswerText {
 public:
  // `tokenizer` must outlive it; null: all text is empty.
  AnswerText(const Tokenizer* tokenizer, bool skip_special_tokens,
             const std::vector<std::string>& stops)
      : matcher_(stops) {
    if (tokenizer != nullptr) detokenizer_.emplace(tokenizer, skip_special_tokens);
  }

  // After a match, or Finish, no more may be pushed.
  StopMatcher::Result Push(TokenId token) {
    if (!detokenizer_) return {};
    return matcher_.Push(detokenizer_->Push(token));
  }
  // What was held back; a stop string may end in it.
  StopMatcher::Result Finish() {
    if (!detokenizer_) return {};
    StopMatcher::Result last = matcher_.Push(detokenizer_->Finish());
    if (!last.match) last.text += matcher_.Finish();
    return last;
  }

 private:
  std::optional<DetokenizerStream> detokenizer_;
  StopMatcher matcher_;
};

}  // namespace switchyard
