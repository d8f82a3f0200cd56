// cli/config_file.h: a YAML file whose keys are a command's flags without the dashes. Scalars and
// lists of scalars; no nesting. Every complaint names file, line and key.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "cli/command.h"

namespace switchyard {

struct ConfigEntry {
  std::string key;
  std::vector<std::string> values;
  int line = 0;  // from 1; 0: of the command line
};

// kInvalidArgument for what is not such a file; kNotFound.
absl::StatusOr<std::vector<ConfigEntry>> ReadConfigFile(const std::string& path);
absl::StatusOr<std::vector<ConfigEntry>> ParseConfig(std::string_view yaml);

// The role that the file is for: the value of its key `role`, or "".
std::string ConfigRole(const std::vector<ConfigEntry>& entries);

// "line N: " of a complaint, or "".
std::string Place(const ConfigEntry& entry);

// What is wrong with the entries as flags of the command, one "line N: …" per problem: unknown keys
// (with the nearest one there is), keys given twice, values that the flag refuses.
std::vector<std::string> ConfigProblems(CommandFactory make,
                                        const std::vector<ConfigEntry>& entries);

// The entries as command-line arguments: "--key", value…; `role` and keys in `given` are left out.
std::vector<std::string> ConfigArguments(const std::vector<ConfigEntry>& entries,
                                         const std::vector<std::string>& given);

// The flags that files may have as keys.
std::vector<std::string> KeysOf(const CLI::App& app);

// The entry of `names` that is nearest to `name` by edit distance; "" if none is near.
std::string Nearest(std::string_view name, const std::vector<std::string>& names);

}  // namespace switchyard
