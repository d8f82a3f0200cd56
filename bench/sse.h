// bench/sse.h: the `data:` lines of a stream of server-sent events, whatever pieces they come in.
#pragma once

#include <functional>
#include <string>
#include <string_view>

namespace switchyard {

class SseReader {
 public:
  static constexpr size_t kLineBytesMax = 1 << 20;
  // Calls `event` with the text after "data: " of each whole line. False once a line is longer than
  // kLineBytesMax; the rest is then ignored.
  bool Push(std::string_view piece, const std::function<void(std::string_view)>& event);

 private:
  std::string line_;
  bool broken_ = false;
};

}  // namespace switchyard
