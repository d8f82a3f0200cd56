#include "cli/command.h"

#include <algorithm>
#include <cstdio>

#include "absl/strings/str_cat.h"
#include "cli/config_file.h"
#include "common/telemetry/log.h"

namespace switchyard {
namespace {

constexpr int kFailed = 1, kUsage = 2;

int Complain(const Command& command, absl::string_view what, int code) {
  std::fprintf(stderr, "switchyard %s: %.*s\n", command.name().c_str(),
               static_cast<int>(what.size()), what.data());
  return code;
}

// The first flag that there is not, and what it may have been meant for; "" if there is no such.
// Its value may have been taken for another argument's, and blamed there.
std::string UnknownFlag(const CLI::App& app, const std::vector<std::string>& arguments) {
  const std::vector<std::string> keys = KeysOf(app);
  for (const std::string& argument : arguments) {
    if (argument == "--") break;
    if (!argument.starts_with("--")) continue;
    const std::string flag = argument.substr(0, argument.find('='));
    if (app.get_option_no_throw(flag) != nullptr) continue;
    const std::string nearest = Nearest(flag.substr(2), keys);
    return absl::StrCat("unknown flag ", flag,
                        nearest.empty() ? "" : absl::StrCat("; did you mean --", nearest, "?"));
  }
  return "";
}

// Parses; true if the command should run, else *code is the exit code.
bool Parse(CLI::App& app, Command& command, std::vector<std::string> arguments, int* code) {
  const std::vector<std::string> given = arguments;
  std::reverse(arguments.begin(), arguments.end());  // CLI11 takes them from the back
  try {
    app.parse(std::move(arguments));
    return true;
  } catch (const CLI::CallForHelp&) {
    std::fputs(app.help().c_str(), stdout);
    *code = 0;
  } catch (const CLI::Error& error) {
    const std::string unknown = UnknownFlag(app, given);
    *code = Complain(command, unknown.empty() ? error.what() : unknown, kUsage);
    std::fprintf(stderr, "(switchyard %s --help lists the flags)\n", command.name().c_str());
  }
  return false;
}

// The file's flags, without those that the command line has.
absl::StatusOr<std::vector<std::string>> FromConfig(const CLI::App& app, const Command& command,
                                                    const std::string& path, CommandFactory make) {
  auto entries = ReadConfigFile(path);
  if (!entries.ok()) return entries.status();
  const std::string role = ConfigRole(*entries);
  if (!role.empty() && role != command.name()) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": is for the role \"", role, "\""));
  }
  const auto problems = ConfigProblems(make, *entries);
  if (!problems.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": ", problems.front()));
  }
  std::vector<std::string> given;
  for (const CLI::Option* option : app.get_options()) {
    if (option->count() == 0) continue;
    for (const std::string& name : option->get_lnames()) given.push_back(name);
  }
  return ConfigArguments(*entries, given);
}

}  // namespace

int RunCommand(CommandFactory make, std::vector<std::string> arguments) {
  const std::unique_ptr<Command> command = make();
  CLI::App app(command->help(), absl::StrCat("switchyard ", command->name()));
  command->AddFlags(app);
  int code = 0;
  if (!Parse(app, *command, arguments, &code)) return code;
  const CLI::Option* config = app.get_option_no_throw("--config");
  if (config != nullptr && config->count() > 0) {
    auto more = FromConfig(app, *command, config->results().front(), make);
    if (!more.ok()) return Complain(*command, more.status().message(), kUsage);
    arguments.insert(arguments.end(), more->begin(), more->end());
    if (!Parse(app, *command, arguments, &code)) return code;
  }
  const CLI::Option* json_logs = app.get_option_no_throw("--json-logs");
  const bool as_json = json_logs != nullptr && json_logs->count() > 0 && json_logs->as<bool>();
  const auto complain = [&](const absl::Status& why, int with) {
    if (!as_json) return Complain(*command, why.message(), with);
    Logger(command->name(), LogLevel::kError, LogFormat::kJson).Error(std::string(why.message()));
    return with;
  };
  if (const absl::Status s = command->CheckFlags(); !s.ok()) return complain(s, kUsage);
  const absl::StatusOr<int> done = command->Run(app);
  return done.ok() ? *done : complain(done.status(), kFailed);
}

}  // namespace switchyard
