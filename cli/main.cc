// The one binary: `switchyard COMMAND …`.
#include <cstdio>
#include <iostream>
#include <string>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "cli/command.h"
#include "cli/config_file.h"

namespace switchyard {
namespace {

constexpr CommandFactory kCommands[] = {
    MakeServe,      MakeRouter,         MakePrefill,  MakeDecode,       MakeAsk,
    MakeGenerate,   MakeVerify,         MakeTokenize, MakeDetokenize,   MakeCheck,
    MakeBalance,    MakeBenchEngine,    MakeBenchEp,  MakeBenchKernels, MakeBenchKv,
    MakeBenchServe, MakeBenchTokenizer, MakeTop};

void PrintHelp(FILE* out) {
  std::fputs(
      "Serves mixture-of-experts models on prefill and decode pools.\n\n"
      "usage: switchyard COMMAND [flags]\n\n",
      out);
  for (const CommandFactory make : kCommands) {
    const auto command = make();
    std::fprintf(out, "  %-12s %s\n", command->name().c_str(), command->help().c_str());
  }
  std::fputs("\nswitchyard COMMAND --help lists a command's flags.\n", out);
}

// The commands whose first word is `name`: "bench engine, bench serve".
std::string SecondWords(const std::string& name, const std::vector<std::string>& names) {
  std::string found;
  for (const std::string& n : names) {
    if (n.starts_with(name + " ")) found += (found.empty() ? "" : ", ") + n;
  }
  return found;
}

int Main(int argc, char** argv) {
  std::string name = argc > 1 ? argv[1] : "";
  int used = 2;
  if (name == "bench" && argc > 2 &&
      argv[2][0] != '-') {  // its measurements are commands of two words
    name += std::string(" ") + argv[2];
    used = 3;
  }
  if (name == "--help" || name == "-h" || name == "help") {
    PrintHelp(stdout);
    return 0;
  }
  std::vector<std::string> names;
  for (const CommandFactory make : kCommands) {
    names.push_back(make()->name());
    if (names.back() == name) return RunCommand(make, {argv + used, argv + argc});
  }
  const std::string rest = SecondWords(name, names);
  if (name.empty()) {
    PrintHelp(stderr);
  } else if (!rest.empty()) {
    const bool help =
        argc > 2 && (argv[2] == std::string("--help") || argv[2] == std::string("-h"));
    std::fprintf(help ? stdout : stderr, "switchyard %s: one of %s is wanted\n", name.c_str(),
                 rest.c_str());
    return help ? 0 : 2;
  } else {
    const std::string nearest = Nearest(name, names);
    std::fprintf(stderr, "switchyard: unknown command \"%s\"%s%s%s\n", name.c_str(),
                 nearest.empty() ? "" : "; did you mean \"", nearest.c_str(),
                 nearest.empty() ? "" : "\"?");
  }
  return 2;
}

}  // namespace
}  // namespace switchyard

int main(int argc, char** argv) {
  // Debian's absl looks for cycles at each lock; gRPC has some per message.
  absl::SetMutexDeadlockDetectionMode(absl::OnDeadlockCycle::kIgnore);
  const int code = switchyard::Main(argc, argv);
  std::cout.flush();
  if (std::fflush(stdout) == 0 && std::ferror(stdout) == 0) return code;
  std::fputs("switchyard: not all could be written to the standard output\n", stderr);
  return code == 0 ? 1 : code;
}
