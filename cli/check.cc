// switchyard check: what is wrong with a configuration file, and where.
#include <cstdio>
#include <map>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "cli/api_key.h"
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

// Of a process: each is bound once. 0 and below is any port, or none.
void AddPortProblems(const std::vector<ConfigEntry>& entries, std::vector<std::string>* problems) {
  std::map<int, const ConfigEntry*> taken;
  for (const ConfigEntry& e : entries) {
    int port = 0;
    if (e.key != "port" && e.key != "grpc-port" && e.key != "metrics-port") continue;
    if (e.values.size() != 1 || !absl::SimpleAtoi(e.values[0], &port) || port <= 0) continue;
    const auto [before, fresh] = taken.emplace(port, &e);
    if (fresh) continue;
    problems->push_back(absl::StrCat(Place(e), e.key, " is ", port, ", and so is ",
                                     before->second->key, "; they must differ"));
  }
}

std::string ValueOf(const std::vector<ConfigEntry>& entries, const std::string& key) {
  for (const ConfigEntry& e : entries) {
    if (e.key == key && e.values.size() == 1) return e.values[0];
  }
  return "";
}

// Problems that need all entries together: missing flags, ports that are the same, a host that
// nobody can dial, and the checkpoint's own configuration.
std::vector<std::string> WholeProblems(const std::string& role, CommandFactory make,
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
  AddPortProblems(entries, &problems);
  if (role == "decode" && IsWildcard(ValueOf(entries, "host")) &&
      ValueOf(entries, "advertise-host").empty()) {
    problems.push_back(absl::StrCat(
        "host ", ValueOf(entries, "host"),
        " is all addresses of a machine: advertise-host is wanted, the one that prefill ranks "
        "reach it by; if the command line has it: check FILE -- --advertise-host=ADDRESS"));
  }
  for (const ConfigEntry& e : entries) {
    if (e.key != "model" || e.values.size() != 1) continue;
    const auto config = LoadModelConfig(e.values[0]);
    if (!config.ok()) {
      problems.push_back(absl::StrCat(Place(e), "model: ", config.status().message()));
    }
  }
  return problems;
}

// --key=value, or --key, as the process will be started with; it goes before the file.
absl::Status AddFlag(const std::string& flag, std::vector<ConfigEntry>* entries) {
  if (!flag.starts_with("--")) {
    return absl::InvalidArgumentError(
        absl::StrCat("\"", flag, "\": after the file and --, flags as --KEY=VALUE are wanted"));
  }
  const size_t equals = flag.find('=');
  const std::string key = flag.substr(2, equals - 2);
  const std::string value = equals == std::string::npos ? "true" : flag.substr(equals + 1);
  std::erase_if(*entries, [&](const ConfigEntry& e) { return e.key == key && e.line > 0; });
  for (ConfigEntry& e : *entries) {
    if (e.key != key) continue;
    e.values.push_back(value);
    return absl::OkStatus();
  }
  entries->push_back({.key = key, .values = {value}, .line = 0});
  return absl::OkStatus();
}

class CheckCommand final : public Command {
 public:
  std::string name() const override { return "check"; }
  std::string help() const override { return "says what is wrong with a configuration file"; }

  void AddFlags(CLI::App& app) override {
    app.add_option("config", file_, "a YAML file; its key `role` says for whom it is")
        ->option_text("CONFIG");
    app.add_option("flags", flags_, "after --: what the command line has besides, as --KEY=VALUE")
        ->option_text("[-- FLAG…]");
    app.add_option("--role", role_, "router, prefill, decode or serve, if the file does not say")
        ->check(CLI::IsMember({"router", "prefill", "decode", "serve"}));
  }
  absl::Status CheckFlags() const override {
    return file_.empty() ? absl::InvalidArgumentError("config: a file is wanted")
                         : absl::OkStatus();
  }

  absl::StatusOr<int> Run(const CLI::App&) override {
    ASSIGN_OR_RETURN(std::vector<ConfigEntry> entries, ReadConfigFile(file_));
    for (const std::string& flag : flags_) RETURN_IF_ERROR(AddFlag(flag, &entries));
    const std::string role = role_.empty() ? ConfigRole(entries) : role_;
    const CommandFactory make = FactoryOf(role);
    if (make == nullptr) {
      return absl::InvalidArgumentError(absl::StrCat(
          file_, ": role is \"", role, "\"; router, prefill, decode or serve is wanted"));
    }
    std::vector<std::string> problems = ConfigProblems(make, entries);
    if (problems.empty()) problems = WholeProblems(role, make, entries);
    for (const std::string& problem : problems) {
      std::printf("%s: %s\n", file_.c_str(), problem.c_str());
    }
    if (problems.empty()) std::printf("%s: in order, for %s\n", file_.c_str(), role.c_str());
    return problems.empty() ? 0 : 1;
  }

 private:
  std::string file_, role_;
  std::vector<std::string> flags_;
};

}  // namespace

std::unique_ptr<Command> MakeCheck() { return std::make_unique<CheckCommand>(); }

}  // namespace switchyard
