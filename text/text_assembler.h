// text/text_assembler.h: the bytes of tokens, one after the other, become text. Decode and
// DetokenizerStream are both this state machine, so that they cannot differ.
#pragma once

#include <string>
#include <string_view>

namespace switchyard {

// How a tokenizer's decoder makes text of token bytes.
struct TextRules {
  // Byte tokens (<0xHH>) count as a run: text if the whole run is UTF-8, else one U+FFFD per byte.
  // Without it all bytes are one stream, and each maximal invalid subpart is one U+FFFD.
  bool byte_runs = false;
  std::string separator;    // between tokens, where a tokenizer has no decoder
  std::string strip_start;  // what is dropped at the very start,
  int strip_start_max = 0;  // so often at most
};

// One per text; not thread-safe. `rules` must outlive it.
class TextAssembler {
 public:
  explicit TextAssembler(const TextRules* rules)
      : rules_(rules), strip_left_(rules->strip_start_max) {}

  // Appends to *out the text that is certain now that a token with `bytes` follows. An incomplete
  // character is held back, and so is a run of byte tokens until it ends: what ends it decides.
  void Push(std::string_view bytes, bool is_byte_token, std::string* out);
  // Appends what is held back.
  void Finish(std::string* out);

 private:
  void FlushRun(std::string* out);
  void Emit(std::string_view text, std::string* out);

  const TextRules* rules_;
  std::string pending_;
  int strip_left_;
  bool first_ = true;
};

}  // namespace switchyard
