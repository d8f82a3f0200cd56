// bench/html.h: a report as one HTML file without scripts or anything from elsewhere: plots are
// SVG.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace switchyard {

struct PlotSeries {
  std::string name;
  std::vector<std::pair<double, double>> points;  // in the order in which they are joined
};
// Axes from 0 to a round number above the largest value. Series without points are left out; no
// points at all: "".
std::string LinePlot(const std::string& title, const std::string& x_label,
                     const std::string& y_label, const std::vector<PlotSeries>& series);

// `report` as RunBenchServe or RunSweep made it.
std::string HtmlReport(const nlohmann::ordered_json& report);

}  // namespace switchyard
