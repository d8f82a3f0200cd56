#include "text/text_assembler.h"

#include "text/utf8.h"

namespace switchyard {

void TextAssembler::Push(std::string_view bytes, bool is_byte_token, std::string* out) {
  if (!first_) Emit(rules_->separator, out);
  first_ = false;
  if (rules_->byte_runs) {
    if (is_byte_token) {
      pending_.append(bytes);
    } else {
      FlushRun(out);
      Emit(bytes, out);
    }
    return;
  }
  pending_.append(bytes);
  std::string text;
  pending_.erase(0, AppendLossyUtf8(pending_, /*final=*/false, &text));
  Emit(text, out);
}

void TextAssembler::Finish(std::string* out) {
  if (rules_->byte_runs) {
    FlushRun(out);
    return;
  }
  std::string text;
  AppendLossyUtf8(pending_, /*final=*/true, &text);
  pending_.clear();
  Emit(text, out);
}

void TextAssembler::FlushRun(std::string* out) {
  if (pending_.empty()) return;
  std::string text;
  if (FindInvalidUtf8(pending_) == std::string_view::npos) {
    text = pending_;
  } else {
    for (size_t i = 0; i < pending_.size(); ++i) text.append("\uFFFD");
  }
  pending_.clear();
  Emit(text, out);
}

void TextAssembler::Emit(std::string_view text, std::string* out) {
  while (strip_left_ > 0 && !text.empty()) {
    if (!text.starts_with(rules_->strip_start)) {
      strip_left_ = 0;
      break;
    }
    text.remove_prefix(rules_->strip_start.size());
    --strip_left_;
  }
  out->append(text);
}

}  // namespace switchyard
