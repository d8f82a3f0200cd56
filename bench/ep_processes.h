// bench/ep_processes.h: the ranks of an expert-parallel group as processes of one benchmark.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/compute_pool.h"
#include "moe/ep_group.h"

namespace switchyard {

// Runs body(group, rank) in options.world processes, connected; what each has returned, by rank.
// options.rank is filled in. namespaces: if not empty, rank i runs in the i-th network namespace of
// /run/netns, which takes root. Forks: to be called before the process has threads.
absl::StatusOr<std::vector<nlohmann::ordered_json>> RunEpProcesses(
    EpGroupOptions options,
    FunctionRef<absl::StatusOr<nlohmann::ordered_json>(EpGroup& group, int rank)> body,
    const std::vector<std::string>& namespaces = {});

}  // namespace switchyard
