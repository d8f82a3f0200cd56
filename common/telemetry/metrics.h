// common/telemetry/metrics.h: one process's series in Prometheus' text format. Names begin with
// "switchyard_" and are vLLM's where vLLM has the figure; a series exists, at 0, from the moment
// that it is asked for, so that dashboards and alerts never meet a gap.
#pragma once

#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>

#include <map>
#include <memory>
#include <string>

namespace prometheus {
class Registry;
}

namespace switchyard {

using MetricLabels = std::map<std::string, std::string>;

// Thread-safe, and so are the series. References live as long as the registry.
class MetricRegistry {
 public:
  // `base`: labels of every series.
  explicit MetricRegistry(MetricLabels base);
  ~MetricRegistry();

  // `name` without the prefix. The same name and labels again give the same series.
  prometheus::Gauge& Gauge(const std::string& name, const std::string& help,
                           const MetricLabels& labels = {});
  prometheus::Counter& Counter(const std::string& name, const std::string& help,
                               const MetricLabels& labels = {});
  prometheus::Histogram& Histogram(const std::string& name, const std::string& help,
                                   const prometheus::Histogram::BucketBoundaries& buckets,
                                   const MetricLabels& labels = {});
  // What /metrics shows.
  std::string Text() const;

 private:
  MetricLabels With(const MetricLabels& more) const;

  const MetricLabels base_;
  const std::unique_ptr<prometheus::Registry> registry_;
};

// For a figure that its owner counts: raises the counter to `total`; never lowers it.
void RaiseTo(prometheus::Counter& counter, double total);

inline constexpr char kMetricsContentType[] = "text/plain; version=0.0.4; charset=utf-8";

// vLLM's buckets, in seconds and tokens.
namespace buckets {
prometheus::Histogram::BucketBoundaries FirstToken();
prometheus::Histogram::BucketBoundaries BetweenTokens();
prometheus::Histogram::BucketBoundaries Request();
prometheus::Histogram::BucketBoundaries Tokens();  // 1, 2, 5, 10, … 1,000,000
// Of a hand-off: 1 ms to 30 s.
prometheus::Histogram::BucketBoundaries Handoff();
}  // namespace buckets

}  // namespace switchyard
