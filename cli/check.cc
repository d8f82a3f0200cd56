// switchyard check: what is wrong with a configuration file, and where.
#include <cstdio>

#include "absl/strings/str_cat.h"
#include "cli/command.h"
#include "cli/config_file.h"
#include "common/status_macros.h"
#include "model/config.h"

namespace switchyard {
namespace {

CommandFactory FactoryOf(const std::string& role) {
  if (role == "router") return MakeRouter;
  if (role == "prefill") return MakePrefill;
  if (role == "decode") return MakeDecode;
  return role == "serve" ? MakeServe : nullptr;
}

// Problems that need all entries together: missing flags, and the checkpoint's own configuration.
std::vector<std::string> WholeProblems(CommandFactory make,
                                       const std::vector<ConfigEntry>& entries) {
  std::vector<std::string> problems;
  const std::unique_ptr<Command> command = make();
  CLI::App app;
  command->AddFlags(app);
  std::vector<std::string> arguments = ConfigArguments(entries, {});
  std::reverse(arguments.begin(), arguments.end());
  try {
    app.parse(std::move(arguments));
  } catch (const CLI::Error& error) {
    return {error.what()};
  }
  if (const absl::Status s = command->CheckFlags(); !s.ok()) {
    problems.emplace_back(s.message());
  }
  for (const ConfigEntry& e : entries) {
    if (e.key != "model" || e.values.size() != 1) continue;
    const auto config = LoadModelConfig(e.values[0]);
    if (!config.ok()) {
      problems.push_back(absl::StrCat("line ", e.line, ": model: ", config.status().message()));
    }
  }
  return problems;
}

class CheckCommand final : public Command {
 public:
  std::string name() const override { return "check"; }
  std::string help() const override { return "says what is wrong with a configuration file"; }

  void AddFlags(CLI::App& app) override {
    app.add_option("config", file_, "a YAML file; its key `role` says for whom it is")
        ->option_text("CONFIG");
    app.add_option("--role", role_, "router, prefill, decode or serve, if the file does not say")
        ->check(CLI::IsMember({"router", "prefill", "decode", "serve"}));
  }
  absl::Status CheckFlags() const override {
    return file_.empty() ? absl::InvalidArgumentError("config: a file is wanted")
                         : absl::OkStatus();
  }

  absl::StatusOr<int> Run(const CLI::App&) override {
    ASSIGN_OR_RETURN(const std::vector<ConfigEntry> entries, ReadConfigFile(file_));
    const std::string role = role_.empty() ? ConfigRole(entries) : role_;
    const CommandFactory make = FactoryOf(role);
    if (make == nullptr) {
      return absl::InvalidArgumentError(absl::StrCat(
          file_, ": role is \"", role, "\"; router, prefill, decode or serve is wanted"));
    }
    std::vector<std::string> problems = ConfigProblems(make, entries);
    if (problems.empty()) problems = WholeProblems(make, entries);
    for (const std::string& problem : problems) {
      std::printf("%s: %s\n", file_.c_str(), problem.c_str());
    }
    if (problems.empty()) std::printf("%s: in order, for %s\n", file_.c_str(), role.c_str());
    return problems.empty() ? 0 : 1;
  }

 private:
  std::string file_, role_;
};

}  // namespace

std::unique_ptr<Command> MakeCheck() { return std::make_unique<CheckCommand>(); }

}  // namespace switchyard
