// bench/spread.h: what repetitions of a measurement say together.
#pragma once

#include <algorithm>
#include <utility>
#include <vector>

namespace switchyard {

struct Spread {
  double median, lowest, highest;
};

// Of at least one value.
inline Spread Summarise(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return {values[values.size() / 2], values.front(), values.back()};
}
inline double Median(std::vector<double> values) { return Summarise(std::move(values)).median; }

}  // namespace switchyard
