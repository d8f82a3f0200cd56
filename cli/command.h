// cli/command.h: one subcommand: its flags, and what it does with them. Each command has a file of
// its own; main.cc lists them.
#pragma once

#include <CLI/CLI.hpp>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace switchyard {

class Command {
 public:
  virtual ~Command() = default;
  virtual std::string name() const = 0;
  virtual std::string help() const = 0;  // one line
  virtual void AddFlags(CLI::App& app) = 0;
  // After parsing: what single flags cannot say (a flag that is missing, two that exclude each
  // other). kInvalidArgument.
  virtual absl::Status CheckFlags() const { return absl::OkStatus(); }
  // Returns the exit code; an error is printed and exits with 1. `app` tells what was given.
  virtual absl::StatusOr<int> Run(const CLI::App& app) = 0;
};

using CommandFactory = std::unique_ptr<Command> (*)();

std::unique_ptr<Command> MakeServe();
std::unique_ptr<Command> MakeRouter();
std::unique_ptr<Command> MakePrefill();
std::unique_ptr<Command> MakeDecode();
std::unique_ptr<Command> MakeGenerate();
std::unique_ptr<Command> MakeAsk();
std::unique_ptr<Command> MakeTop();
std::unique_ptr<Command> MakeVerify();
std::unique_ptr<Command> MakeTokenize();
std::unique_ptr<Command> MakeDetokenize();
std::unique_ptr<Command> MakeCheck();
std::unique_ptr<Command> MakeBalance();
std::unique_ptr<Command> MakeBenchEngine();
std::unique_ptr<Command> MakeBenchKernels();
std::unique_ptr<Command> MakeBenchKv();
std::unique_ptr<Command> MakeBenchEp();
std::unique_ptr<Command> MakeBenchServe();
std::unique_ptr<Command> MakeBenchTokenizer();

// Parses `arguments` (without program and command name) and runs. --config FILE gives flags that
// the command line does not. Exit codes: 0; 1 it failed; 2 wrong usage.
int RunCommand(CommandFactory make, std::vector<std::string> arguments);

}  // namespace switchyard
