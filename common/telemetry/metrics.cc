#include "common/telemetry/metrics.h"

#include <prometheus/registry.h>
#include <prometheus/text_serializer.h>

namespace switchyard {

using Boundaries = prometheus::Histogram::BucketBoundaries;

MetricRegistry::MetricRegistry(MetricLabels base)
    : base_(std::move(base)), registry_(std::make_unique<prometheus::Registry>()) {}
MetricRegistry::~MetricRegistry() = default;

MetricLabels MetricRegistry::With(const MetricLabels& more) const {
  MetricLabels all = more;
  all.insert(base_.begin(), base_.end());
  return all;
}

prometheus::Gauge& MetricRegistry::Gauge(const std::string& name, const std::string& help,
                                         const MetricLabels& labels) {
  return prometheus::BuildGauge()
      .Name("switchyard_" + name)
      .Help(help)
      .Register(*registry_)
      .Add(With(labels));
}

prometheus::Counter& MetricRegistry::Counter(const std::string& name, const std::string& help,
                                             const MetricLabels& labels) {
  return prometheus::BuildCounter()
      .Name("switchyard_" + name)
      .Help(help)
      .Register(*registry_)
      .Add(With(labels));
}

prometheus::Histogram& MetricRegistry::Histogram(const std::string& name, const std::string& help,
                                                 const Boundaries& buckets,
                                                 const MetricLabels& labels) {
  return prometheus::BuildHistogram()
      .Name("switchyard_" + name)
      .Help(help)
      .Register(*registry_)
      .Add(With(labels), buckets);
}

std::string MetricRegistry::Text() const {
  return prometheus::TextSerializer().Serialize(registry_->Collect());
}

void RaiseTo(prometheus::Counter& counter, double total) {
  if (const double rise = total - counter.Value(); rise > 0) counter.Increment(rise);
}

namespace buckets {

Boundaries FirstToken() {
  return {0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1,  0.25,  0.5,   0.75,
          1.0,   2.5,   5.0,  7.5,  10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0};
}
Boundaries BetweenTokens() {
  return {0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2,  0.3,  0.4, 0.5,
          0.75, 1.0,   2.5,  5.0,   7.5, 10.0, 20.0, 40.0, 80.0};
}
Boundaries Request() {
  return {0.3,  0.5,  0.8,  1.0,  1.5,   2.0,   2.5,   5.0,   10.0,   15.0,  20.0,
          30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0};
}
Boundaries Tokens() {
  Boundaries out;
  for (double power = 1; power <= 1e5; power *= 10) {
    for (const double step : {1, 2, 5}) out.push_back(step * power);
  }
  out.push_back(1e6);
  return out;
}
Boundaries Handoff() {
  return {0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0};
}

}  // namespace buckets
}  // namespace switchyard
