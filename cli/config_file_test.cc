#include "cli/config_file.h"

#include "gtest/gtest.h"

namespace switchyard {
namespace {

class Fake final : public Command {
 public:
  std::string name() const override { return "fake"; }
  std::string help() const override { return ""; }
  void AddFlags(CLI::App& app) override {
    app.add_option("model,--model", model_);
    app.add_option("--block-size", block_size_)->check(CLI::Range(1, 64));
    app.add_option("--decode-address", addresses_)->delimiter(',');
    app.add_flag("--json-logs", json_);
    app.add_option("--config");
  }
  absl::StatusOr<int> Run(const CLI::App&) override { return 0; }

 private:
  std::string model_;
  int block_size_ = 0;
  std::vector<std::string> addresses_;
  bool json_ = false;
};
std::unique_ptr<Command> MakeFake() { return std::make_unique<Fake>(); }

std::vector<std::string> Problems(std::string_view yaml) {
  const auto entries = ParseConfig(yaml);
  if (!entries.ok()) return {std::string(entries.status().message())};
  return ConfigProblems(MakeFake, *entries);
}

TEST(ConfigFileTest, GoodFilesBecomeArguments) {
  const auto entries = ParseConfig(
      "role: fake\n"
      "model: m  # where\n"
      "decode-address: [a:1, b:2]\n"
      "json-logs: true\n");
  ASSERT_TRUE(entries.ok()) << entries.status();
  EXPECT_EQ(ConfigRole(*entries), "fake");
  EXPECT_EQ(ConfigProblems(MakeFake, *entries), std::vector<std::string>{});
  EXPECT_EQ(ConfigArguments(*entries, {"model"}),
            (std::vector<std::string>{"--decode-address=a:1", "--decode-address=b:2",
                                      "--json-logs=true"}))
      << "what the command line gives, the file does not";
}

TEST(ConfigFileTest, UnknownKeyNamesLineAndNearest) {
  EXPECT_EQ(
      Problems("model: m\nblok-size: 16\n"),
      std::vector<std::string>{"line 2: unknown key \"blok-size\"; did you mean \"block-size\"?"});
  EXPECT_EQ(Problems("zzzzzzzz: 1\n"),
            std::vector<std::string>{"line 1: unknown key \"zzzzzzzz\""});
  EXPECT_EQ(Problems("config: x\n").size(), 1u) << "files do not nest";
}

TEST(ConfigFileTest, BadValueNamesLineAndLimit) {
  const auto problems = Problems("model: m\n\nblock-size: 65\n");
  ASSERT_EQ(problems.size(), 1u);
  EXPECT_NE(problems[0].find("line 3"), std::string::npos) << problems[0];
  EXPECT_NE(problems[0].find("64"), std::string::npos) << problems[0];
  EXPECT_EQ(Problems("block-size: many\n").size(), 1u);
}

TEST(ConfigFileTest, KeyWithoutValueIsToldAndNotTakenForItsDefault) {
  for (const char* blank :
       {"block-size:\n", "block-size: ~\n", "decode-address: []\n", "role:\n"}) {
    const auto problems = Problems(blank);
    ASSERT_EQ(problems.size(), 1u) << blank;
    EXPECT_NE(problems[0].find("line 1: "), std::string::npos) << problems[0];
    EXPECT_NE(problems[0].find("has no value"), std::string::npos) << problems[0];
  }
}

TEST(ConfigFileTest, EveryProblemIsTold) {
  EXPECT_EQ(Problems("a: 1\nblock-size: 0\nmodel: x\nmodel: y\n").size(), 3u);
}

TEST(ConfigFileTest, WhatIsNoMappingIsRefusedWithItsLine) {
  for (const char* bad :
       {"- a\n", "just text\n", "a: {b: c}\n", "a: [[1]]\n", "a: [1\n", "? [1]\n: 2\n"}) {
    const auto entries = ParseConfig(bad);
    ASSERT_FALSE(entries.ok()) << bad;
    EXPECT_EQ(entries.status().message().substr(0, 5), "line ") << bad << entries.status();
  }
  EXPECT_TRUE(ParseConfig("").ok());
}

}  // namespace
}  // namespace switchyard
