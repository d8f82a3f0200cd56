#include "common/telemetry/log.h"

#include <spdlog/logger.h>
#include <spdlog/pattern_formatter.h>
#include <spdlog/sinks/stdout_sinks.h>

#include <nlohmann/json.hpp>
#include <utility>

namespace switchyard {
namespace {

using Json = nlohmann::json;

// JSON's escapes, with U+FFFD for bytes that are not UTF-8.
std::string Quoted(std::string_view text) {
  return Json(text).dump(-1, ' ', false, Json::error_handler_t::replace);
}

// As it is, if it is one plain word or line; else in quotes.
std::string Plain(std::string_view text, bool spaces_allowed) {
  bool plain = !text.empty();
  for (const unsigned char c : text) {
    plain = plain && c > (spaces_allowed ? 0x1f : 0x20) && c < 0x7f && c != '"' && c != '\\';
  }
  return plain ? std::string(text) : Quoted(text);
}

spdlog::level::level_enum SpdlogLevel(LogLevel level) {
  switch (level) {
    case LogLevel::kDebug:
      return spdlog::level::debug;
    case LogLevel::kInfo:
      return spdlog::level::info;
    case LogLevel::kWarning:
      return spdlog::level::warn;
    case LogLevel::kError:
      break;
  }
  return spdlog::level::err;
}

}  // namespace

absl::StatusOr<LogLevel> ParseLogLevel(std::string_view name) {
  if (name == "debug") return LogLevel::kDebug;
  if (name == "info") return LogLevel::kInfo;
  if (name == "warning") return LogLevel::kWarning;
  if (name == "error") return LogLevel::kError;
  return absl::InvalidArgumentError(
      absl::StrCat("log level ", Quoted(name), " is none of debug, info, warning, error"));
}

absl::StatusOr<LogFormat> ParseLogFormat(std::string_view name) {
  if (name == "text") return LogFormat::kText;
  if (name == "json") return LogFormat::kJson;
  return absl::InvalidArgumentError(
      absl::StrCat("log format ", Quoted(name), " is none of text, json"));
}

std::string FormatLogMessage(LogFormat format, std::string_view message,
                             std::initializer_list<LogField> fields) {
  const bool json = format == LogFormat::kJson;
  std::string line = json ? absl::StrCat("\"message\":", Quoted(message))
                          : Plain(message, /*spaces_allowed=*/true);
  for (const LogField& field : fields) {
    if (json) {
      absl::StrAppend(&line, ",", Quoted(field.key), ":", Quoted(field.value));
    } else {
      absl::StrAppend(&line, " ", Plain(field.key, false), "=", Plain(field.value, false));
    }
  }
  return line;
}

Logger::Logger(std::string name, LogLevel level, LogFormat format)
    : level_(level), format_(format) {
  // The name stands inside the pattern as the caller gave it: quotes and escapes must not break a
  // JSON line. UTC, so that the lines of several machines sort.
  const bool json = format == LogFormat::kJson;
  std::string shown = json ? Quoted(name) : Plain(name, true);
  logger_ = std::make_unique<spdlog::logger>(std::move(shown),
                                             std::make_shared<spdlog::sinks::stderr_sink_mt>());
  logger_->set_formatter(std::make_unique<spdlog::pattern_formatter>(
      json ? R"({"time":"%Y-%m-%dT%H:%M:%S.%fZ","level":"%l","logger":%n,%v})"
           : "%Y-%m-%dT%H:%M:%S.%eZ %l %n: %v",
      spdlog::pattern_time_type::utc));
  logger_->set_level(SpdlogLevel(level));
  logger_->flush_on(spdlog::level::debug);
}

Logger::~Logger() = default;

void Logger::Log(LogLevel level, std::string_view message, std::initializer_list<LogField> fields) {
  if (!enabled(level)) return;
  const std::string line = FormatLogMessage(format_, message, fields);
  logger_->log(SpdlogLevel(level), spdlog::string_view_t(line.data(), line.size()));
}

}  // namespace switchyard
