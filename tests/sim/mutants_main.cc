// Runs the simulator on sources with deliberate bugs (mutate.py), one bug at a time: each must
// break a promise within SEEDS seeds, and without any a tenth as many must keep them all. usage:
// mutants SEEDS [NUMBER]
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>

#include "absl/strings/numbers.h"
#include "tests/sim/mutation.h"
#include "tests/sim/simulation.h"

namespace switchyard::sim {
namespace {

constexpr const char* kNames[] = {
#include "tests/sim/mutations.inc"
};

// In a process of its own: a bug may also stop it by a failed CHECK.
[[noreturn]] void Hunt(int number, uint64_t seeds) {
  Mutation() = number;
  Shared shared;
  for (uint64_t seed = 1; seed <= seeds; ++seed) {
    const RunResult run = RunSeed(seed, &shared);
    if (run.violation.empty()) continue;
    std::printf("   caught after %llu seeds: %s\n", static_cast<unsigned long long>(seed),
                run.violation.c_str());
    std::fflush(stdout);
    _exit(1);
  }
  _exit(0);
}

int Main(uint64_t seeds, int only) {
  int missed = 0;
  for (int number = 0; number <= static_cast<int>(std::size(kNames)); ++number) {
    if (only != 0 && number != only) continue;
    std::printf("%d. %s\n", number, number == 0 ? "no bug" : kNames[number - 1]);
    std::fflush(stdout);
    const pid_t child = fork();
    if (child == 0) Hunt(number, number == 0 ? seeds / 10 : seeds);
    int status = 0;
    waitpid(child, &status, 0);
    const bool kept = WIFEXITED(status) && WEXITSTATUS(status) == 0;
    const bool broken = WIFEXITED(status) && WEXITSTATUS(status) == 1;
    const bool aborted = WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT;
    if (aborted) std::printf("   caught by a failed CHECK\n");
    const bool right = number == 0 ? kept : broken || aborted;
    if (!right) std::printf("   %s (status %d)\n", kept ? "NOT CAUGHT" : "FAILED", status);
    missed += !right;
  }
  return missed == 0 ? 0 : 1;
}

}  // namespace
}  // namespace switchyard::sim

int main(int argc, char** argv) {
  uint64_t seeds = 0;
  int only = 0;
  if (argc < 2 || argc > 3 || !absl::SimpleAtoi(argv[1], &seeds) ||
      (argc == 3 && !absl::SimpleAtoi(argv[2], &only))) {
    std::fprintf(stderr, "usage: %s SEEDS [NUMBER]\n", argv[0]);
    return 2;
  }
  return switchyard::sim::Main(seeds, only);
}
