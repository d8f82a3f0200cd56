#include "cli/ep_flags.h"

#include "absl/strings/str_cat.h"
#include "cli/flags.h"

namespace switchyard {
namespace {
const char kGroup[] = "Expert parallelism";
}

void EpFlags::AddTo(CLI::App& app) {
  app.add_option("--redundant-experts", ep.redundant_experts,
                 "replicas per layer beyond one of each expert")
      ->check(CLI::Range(0, 1 << 16))
      ->capture_default_str()
      ->group(kGroup);
  app.add_option("--expert-placement", ep.placement_file,
                 "which experts are where: the output of `balance`; default: spread evenly")
      ->check(CLI::ExistingFile)
      ->group(kGroup);
  app.add_option("--ep-lane", lane, "how tokens go from rank to rank")
      ->check(CLI::IsMember({"auto", "shm", "tcp"}))
      ->capture_default_str()
      ->group(kGroup);
  app.add_option("--ep-low-latency-tokens", ep.low_latency_tokens,
                 "a step with at most so many rows on each rank takes the low-latency path")
      ->check(CLI::Range(0, 1 << 12))
      ->capture_default_str()
      ->group(kGroup);
  app.add_option("--ep-overlap", overlap,
                 "two micro-batches per step, one computes while the other's rows travel: where it "
                 "is measured to be faster, always, never")
      ->check(CLI::IsMember({"auto", "on", "off"}))
      ->capture_default_str()
      ->group(kGroup);
  app.add_option(
         "--ep-device-lane", device_lane,
         "with --device cuda, how rows go from rank to rank: from device to device by NCCL, into "
         "each other's memory on one machine, staged through the host by --ep-lane, or the first "
         "that can be")
      ->check(CLI::IsMember({"auto", "nccl", "peer", "staged"}))
      ->capture_default_str()
      ->group(kGroup);
  app.add_option(
         "--ep-device-ctas", ep.device_ctas,
         "with --device cuda, how many multiprocessors moving rows between devices may take "
         "from computing; 0: as many as it likes")
      ->check(CLI::Range(0, kDeviceCtasMax))
      ->capture_default_str()
      ->group(kGroup);
  app.add_option("--ep-timeout-seconds", timeout_seconds,
                 "a rank that all others have waited for so long is lost")
      ->check(CLI::Range(0.1, 3600.0))
      ->capture_default_str()
      ->group(kGroup);
  AddRebalanceTo(app);
}

void EpFlags::AddRebalanceTo(CLI::App& app) {
  app.add_option("--ep-rebalance-interval-seconds", rebalance_seconds,
                 "look so often whether measured loads call for another placement of experts, and "
                 "change to it while serving; 0: never")
      ->check(CLI::Range(0.0, 86400.0))
      ->capture_default_str()
      ->group(kGroup);
  app.add_option("--ep-rebalance-threshold", ep.rebalance.threshold,
                 "by how much balancedness (mean / max of the ranks' loads) must grow")
      ->check(CLI::Range(0.0, 1.0))
      ->capture_default_str()
      ->group(kGroup);
  app.add_option("--ep-rebalance-bandwidth", rebalance_mb_per_second,
                 "MB/s of expert weights that a rank reads for it")
      ->check(CLI::Range(0.001, 1e6))
      ->capture_default_str()
      ->group(kGroup);
  app.add_option("--ep-spare-experts", ep.rebalance.fetched_experts_max,
                 "experts that a rank holds beside its own for it, until all change; at least "
                 "those of one layer")
      ->check(CLI::Range(0, 1 << 20))
      ->capture_default_str()
      ->group(kGroup);
}

void EpFlags::AddTensorRanksTo(CLI::App& app) {
  app.add_option("--tp", ep.tensor_ranks,
                 "so many neighbours of --ep-peers compute the attention of one batch together; "
                 "the first of them takes the requests")
      ->check(CLI::Range(1, kEpRanksMax))
      ->capture_default_str()
      ->group(kGroup);
}

void EpFlags::AddRankTo(CLI::App& app) {
  app.add_option("--ep-rank", ep.rank, "this rank's place in --ep-peers")
      ->check(CLI::Range(0, kEpRanksMax - 1))
      ->group(kGroup);
  app.add_option("--ep-peers", ep.peers,
                 "gRPC addresses of all ranks that share the experts; none: this rank has all")
      ->check(IsAddress())
      ->delimiter(',')
      ->group(kGroup);
  app.add_option("--ep-net-devices", ep.net_devices, "interfaces of the tcp lane")
      ->capture_default_str()
      ->group(kGroup);
}

EpOptions EpFlags::Options() const {
  EpOptions options = ep;
  options.lanes = KvLanes(lane);
  options.overlap = overlap == "on"    ? EpOverlap::kOn
                    : overlap == "off" ? EpOverlap::kOff
                                       : EpOverlap::kAuto;
  options.device_lane = device_lane == "nccl"     ? DeviceLane::kDirect
                        : device_lane == "peer"   ? DeviceLane::kPeer
                        : device_lane == "staged" ? DeviceLane::kStaged
                                                  : DeviceLane::kAuto;
  options.wait_max = absl::Seconds(timeout_seconds);
  options.rebalance_interval = absl::Seconds(rebalance_seconds);
  options.rebalance_bytes_per_second = rebalance_mb_per_second * 1e6;
  return options;
}

absl::Status EpFlags::CheckFor(bool on_device) const {
  if (on_device || ep.device_ctas == 0) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("ep-device-ctas is ", ep.device_ctas,
                   "; it limits devices: without --device cuda only 0 is allowed"));
}

std::vector<std::string> EpFlags::Names() {
  return {"redundant-experts",
          "expert-placement",
          "ep-lane",
          "ep-low-latency-tokens",
          "ep-timeout-seconds",
          "ep-rebalance-interval-seconds",
          "ep-rebalance-threshold",
          "ep-rebalance-bandwidth",
          "ep-spare-experts",
          "ep-overlap",
          "ep-device-lane",
          "ep-device-ctas"};
}

}  // namespace switchyard
