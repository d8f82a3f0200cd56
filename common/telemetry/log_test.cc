#include "common/telemetry/log.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <thread>
#include <vector>

#include "absl/strings/str_split.h"

namespace switchyard {
namespace {

std::vector<std::string> Lines(const std::string& text) {
  return absl::StrSplit(text, '\n', absl::SkipEmpty());
}

TEST(LogTest, JsonLineHoldsMessageAndFields) {
  testing::internal::CaptureStderr();
  Logger log("decode \"1\"", LogLevel::kInfo, LogFormat::kJson);
  log.Info("worker joined", {{"address", "127.0.0.1:7"}, {"rank", 3}});
  const std::vector<std::string> lines = Lines(testing::internal::GetCapturedStderr());
  ASSERT_EQ(lines.size(), 1u);
  const auto line = nlohmann::json::parse(lines[0]);
  EXPECT_EQ(line["message"], "worker joined");
  EXPECT_EQ(line["level"], "info");
  EXPECT_EQ(line["logger"], "decode \"1\"");
  EXPECT_EQ(line["address"], "127.0.0.1:7");
  EXPECT_EQ(line["rank"], "3");
  EXPECT_EQ(line["time"].get<std::string>().size(), 27u);
}

TEST(LogTest, BelowTheLevelNothingIsWritten) {
  testing::internal::CaptureStderr();
  Logger log("router", LogLevel::kWarning, LogFormat::kText);
  EXPECT_FALSE(log.enabled(LogLevel::kInfo));
  log.Info("quiet");
  log.Error("loud");
  const std::vector<std::string> lines = Lines(testing::internal::GetCapturedStderr());
  ASSERT_EQ(lines.size(), 1u);
  EXPECT_NE(lines[0].find(" error router: loud"), std::string::npos) << lines[0];
}

TEST(LogTest, TextFromOutsideCannotForgeALine) {
  const std::string hostile = "x\n2026-01-01 error router: forged \xff {} %v";
  const std::string text = FormatLogMessage(LogFormat::kText, hostile, {{"k", "a b=c\n"}});
  EXPECT_EQ(text.find('\n'), std::string::npos);
  EXPECT_NE(text.find("k=\"a b=c\\n\""), std::string::npos) << text;
  testing::internal::CaptureStderr();
  Logger log("router", LogLevel::kInfo, LogFormat::kJson);
  log.Info(hostile);
  const std::vector<std::string> lines = Lines(testing::internal::GetCapturedStderr());
  ASSERT_EQ(lines.size(), 1u);
  EXPECT_EQ(nlohmann::json::parse(lines[0])["message"],
            "x\n2026-01-01 error router: forged \xef\xbf\xbd {} %v");
}

TEST(LogTest, LinesOfManyThreadsStayWhole) {
  testing::internal::CaptureStderr();
  {
    Logger log("router", LogLevel::kInfo, LogFormat::kJson);
    std::vector<std::thread> threads;
    for (int t = 0; t < 4; ++t) {
      threads.emplace_back([&log, t] {
        for (int i = 0; i < 100; ++i) log.Info("tick", {{"thread", t}, {"i", i}});
      });
    }
    for (std::thread& t : threads) t.join();
  }
  const std::vector<std::string> lines = Lines(testing::internal::GetCapturedStderr());
  ASSERT_EQ(lines.size(), 400u);
  for (const std::string& line : lines) {
    EXPECT_EQ(nlohmann::json::parse(line)["message"], "tick");
  }
}

TEST(LogTest, NamesOfLevelsAndFormats) {
  EXPECT_EQ(*ParseLogLevel("warning"), LogLevel::kWarning);
  EXPECT_EQ(*ParseLogFormat("json"), LogFormat::kJson);
  EXPECT_EQ(ParseLogLevel("loud").status().message(),
            "log level \"loud\" is none of debug, info, warning, error");
  EXPECT_FALSE(ParseLogFormat("xml").ok());
}

}  // namespace
}  // namespace switchyard
