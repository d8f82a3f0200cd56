#include "kernels/kernel_set.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "kernels/cpu/cpu_kernels.h"
#include "kernels/reference/reference.h"

namespace switchyard {
namespace {

// Ascending by preference.
std::vector<CpuPath> Paths() {
  std::vector<CpuPath> paths = CpuPaths();
  paths.insert(paths.begin(), {ReferenceKernels(), nullptr, true});
  return paths;
}

}  // namespace

std::vector<KernelSet> AvailableKernels() {
  std::vector<KernelSet> sets;
  for (CpuPath& p : Paths()) {
    if (p.supported) sets.push_back(std::move(p.set));
  }
  return sets;
}

std::vector<std::string> MissingKernels() {
  std::vector<std::string> names;
  for (CpuPath& p : Paths()) {
    if (!p.supported) names.push_back(std::move(p.set.name));
  }
  return names;
}

absl::StatusOr<KernelSet> SelectKernels(std::string_view name) {
  const std::vector<KernelSet> available = AvailableKernels();
  if (name == "auto") return available.back();
  std::vector<std::string> names = {"auto"};
  for (const KernelSet& set : available) {
    if (set.name == name) return set;
    names.push_back(set.name);
  }
  const std::string choices = absl::StrCat("this machine can run: ", absl::StrJoin(names, ", "));
  const std::string quoted(name);
  for (const std::string& missing : MissingKernels()) {
    if (missing == name) {
      return absl::FailedPreconditionError(
          absl::StrCat("kernels '", quoted, "' need a CPU feature that is absent; ", choices));
    }
  }
  return absl::InvalidArgumentError(
      absl::StrCat("kernels '", quoted, "' are not known; ", choices));
}

}  // namespace switchyard
