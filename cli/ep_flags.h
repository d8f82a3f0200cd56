// cli/ep_flags.h: flags of expert parallelism. `serve` starts whole groups and hands the first part
// to their ranks; a rank that is started by hand also says which one it is, and where all are.
#pragma once

#include <CLI/CLI.hpp>
#include <string>
#include <vector>

#include "engine/ep_rank.h"

namespace switchyard {

struct EpFlags {
  EpOptions ep;
  std::string lane = "auto", overlap = "auto", device_lane = "auto";
  double timeout_seconds = 30;
  double rebalance_seconds = 0, rebalance_mb_per_second = 20;

  void AddTo(CLI::App& app);             // what all ranks of a group share
  void AddRankTo(CLI::App& app);         // --ep-rank, --ep-peers, --ep-net-devices
  void AddTensorRanksTo(CLI::App& app);  // --tp
  EpOptions Options() const;
  // kInvalidArgument names a flag that needs a device where the model computes on none.
  absl::Status CheckFor(bool on_device) const;
  // Names of the shared flags, without dashes.
  static std::vector<std::string> Names();

 private:
  void AddRebalanceTo(CLI::App& app);
};

}  // namespace switchyard
