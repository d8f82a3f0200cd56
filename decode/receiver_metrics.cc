#include "decode/receiver_metrics.h"

namespace switchyard {

ReceiverMetrics::ReceiverMetrics(MetricRegistry& r)
    : bytes_(r.Counter("kv_received_bytes_total", "KV bytes that came in and matched")),
      blocks_(r.Counter("kv_received_blocks_total", "KV blocks that came in and matched")),
      frames_(r.Counter("kv_received_frames_total", "Frames of KV blocks")),
      stale_frames_(r.Counter("kv_stale_frames_total",
                              "Frames of hand-offs that had ended, and were not copied")),
      corrupt_blocks_(
          r.Counter("kv_corrupt_blocks_total", "KV blocks that did not match their checksum")),
      sessions_(r.Gauge("handoff_sessions", "Hand-offs that are open")),
      peers_(r.Gauge("handoff_peers", "Prefill ranks that have said Hello")),
      tombstones_(r.Gauge("handoff_tombstones", "Cancelled attempts that are remembered")) {}

void ReceiverMetrics::Update(const KvReceiverStats& s) {
  RaiseTo(bytes_, static_cast<double>(s.bytes));
  RaiseTo(blocks_, static_cast<double>(s.blocks));
  RaiseTo(frames_, static_cast<double>(s.frames));
  RaiseTo(stale_frames_, static_cast<double>(s.stale_frames));
  RaiseTo(corrupt_blocks_, static_cast<double>(s.corrupt_blocks));
  sessions_.Set(s.sessions);
  peers_.Set(s.peers);
  tombstones_.Set(s.tombstones);
}

}  // namespace switchyard
