#include "bench/sse.h"

#include <algorithm>

namespace switchyard {

bool SseReader::Push(std::string_view piece, const std::function<void(std::string_view)>& event) {
  constexpr std::string_view kData = "data:";
  while (!piece.empty() && !broken_) {
    const size_t end = piece.find('\n');
    const std::string_view part = piece.substr(0, end);
    broken_ = line_.size() + part.size() > kLineBytesMax;
    if (broken_) return false;
    line_.append(part);
    if (end == std::string_view::npos) return true;
    piece.remove_prefix(end + 1);
    std::string_view line = line_;
    if (line.ends_with('\r')) line.remove_suffix(1);
    if (line.starts_with(kData)) {
      line.remove_prefix(kData.size());
      if (line.starts_with(' ')) line.remove_prefix(1);
      event(line);
    }
    line_.clear();
  }
  return !broken_;
}

}  // namespace switchyard
