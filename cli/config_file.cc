#include "cli/config_file.h"

#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <set>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/file.h"
#include "common/status_macros.h"

namespace switchyard {
namespace {

constexpr size_t kConfigBytesMax = 1 << 20;
constexpr size_t kEntriesMax = 1000;

absl::Status At(int line, const std::string& what) {
  return absl::InvalidArgumentError(absl::StrCat("line ", line, ": ", what));
}

absl::StatusOr<ConfigEntry> ToEntry(const YAML::Node& key, const YAML::Node& value) {
  const int line = key.Mark().line + 1;
  if (!key.IsScalar()) return At(line, "a key must be a name");
  ConfigEntry entry{.key = key.Scalar(), .values = {}, .line = line};
  if (value.IsScalar()) {
    entry.values.push_back(value.Scalar());
  } else if (value.IsSequence() && value.size() <= kEntriesMax) {
    for (const YAML::Node& item : value) {
      if (!item.IsScalar()) return At(line, entry.key + ": a list of plain values is wanted");
      entry.values.push_back(item.Scalar());
    }
  } else if (!value.IsNull()) {
    return At(line, entry.key + ": a value or a list of values is wanted");
  }
  return entry;
}

}  // namespace

std::vector<std::string> KeysOf(const CLI::App& app) {
  std::vector<std::string> keys;
  for (const CLI::Option* option : app.get_options()) {
    for (const std::string& name : option->get_lnames()) {
      if (name != "help" && name != "config") keys.push_back(name);
    }
  }
  return keys;
}

absl::StatusOr<std::vector<ConfigEntry>> ParseConfig(std::string_view yaml) {
  std::vector<ConfigEntry> entries;
  try {
    const YAML::Node root = YAML::Load(std::string(yaml));
    if (root.IsNull()) return entries;
    if (!root.IsMap() || root.size() > kEntriesMax) {
      return At(root.Mark().line + 1,
                absl::StrCat("a mapping of at most ", kEntriesMax, " keys to values is wanted"));
    }
    for (const auto& pair : root) {
      ASSIGN_OR_RETURN(ConfigEntry entry, ToEntry(pair.first, pair.second));
      entries.push_back(std::move(entry));
    }
  } catch (const YAML::Exception& e) {
    return At(e.mark.line + 1, e.msg);
  }
  return entries;
}

absl::StatusOr<std::vector<ConfigEntry>> ReadConfigFile(const std::string& path) {
  ASSIGN_OR_RETURN(const std::string text, ReadFile(path, kConfigBytesMax));
  auto entries = ParseConfig(text);
  if (entries.ok()) return entries;
  return absl::InvalidArgumentError(absl::StrCat(path, ": ", entries.status().message()));
}

std::string Place(const ConfigEntry& entry) {
  return entry.line > 0 ? absl::StrCat("line ", entry.line, ": ") : "";
}

std::string ConfigRole(const std::vector<ConfigEntry>& entries) {
  for (const ConfigEntry& e : entries) {
    if (e.key == "role" && e.values.size() == 1) return e.values[0];
  }
  return "";
}

std::vector<std::string> ConfigProblems(CommandFactory make,
                                        const std::vector<ConfigEntry>& entries) {
  std::vector<std::string> problems;
  std::set<std::string> seen;
  for (const ConfigEntry& e : entries) {
    const auto complain = [&](const std::string& what) {
      problems.push_back(absl::StrCat(Place(e), what));
    };
    if (!seen.insert(e.key).second) complain(absl::StrCat("\"", e.key, "\" is given twice"));
    if (e.values.empty()) {
      complain(absl::StrCat("\"", e.key, "\" has no value; leave the key out for its default"));
      continue;
    }
    if (e.key == "role") continue;
    // A command of its own for each entry, so that a complaint belongs to one line.
    const std::unique_ptr<Command> command = make();
    CLI::App app;
    command->AddFlags(app);
    const std::vector<std::string> keys = KeysOf(app);
    if (std::find(keys.begin(), keys.end(), e.key) == keys.end()) {
      const std::string nearest = Nearest(e.key, keys);
      complain(
          absl::StrCat("unknown key \"", e.key, "\"",
                       nearest.empty() ? "" : absl::StrCat("; did you mean \"", nearest, "\"?")));
      continue;
    }
    std::vector<std::string> arguments = ConfigArguments({e}, {});
    std::reverse(arguments.begin(), arguments.end());  // CLI11 takes them from the back
    try {
      app.parse(std::move(arguments));
    } catch (const CLI::Error& error) {
      complain(error.what());
    }
  }
  return problems;
}

std::vector<std::string> ConfigArguments(const std::vector<ConfigEntry>& entries,
                                         const std::vector<std::string>& given) {
  std::vector<std::string> arguments;
  for (const ConfigEntry& e : entries) {
    if (e.key == "role" || std::find(given.begin(), given.end(), e.key) != given.end()) continue;
    for (const std::string& value : e.values) {
      arguments.push_back(absl::StrCat("--", e.key, "=", value));
    }
  }
  return arguments;
}

std::string Nearest(std::string_view name, const std::vector<std::string>& names) {
  std::string best;
  size_t best_distance = std::max<size_t>(2, name.size() / 3) + 1;
  for (const std::string& candidate : names) {
    // Levenshtein, one row at a time.
    std::vector<size_t> row(candidate.size() + 1);
    for (size_t j = 0; j < row.size(); ++j) row[j] = j;
    for (size_t i = 1; i <= name.size(); ++i) {
      size_t diagonal = row[0];
      row[0] = i;
      for (size_t j = 1; j < row.size(); ++j) {
        const size_t replaced = diagonal + (name[i - 1] != candidate[j - 1]);
        diagonal = row[j];
        row[j] = std::min({replaced, row[j] + 1, row[j - 1] + 1});
      }
    }
    if (row.back() < best_distance) {
      best_distance = row.back();
      best = candidate;
    }
  }
  return best;
}

}  // namespace switchyard
