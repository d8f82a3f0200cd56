// switchyard bench tokenizer: how fast a tokenizer loads and encodes.
#include <iostream>

#include "bench/tokenizer_bench.h"
#include "cli/command.h"

namespace switchyard {
namespace {

class BenchTokenizer final : public Command {
 public:
  std::string name() const override { return "bench tokenizer"; }
  std::string help() const override { return "how fast a tokenizer loads and encodes"; }

  void AddFlags(CLI::App& app) override {
    app.add_option("tokenizer", o_.tokenizer, "tokenizer.json, or a folder that holds one")
        ->required()
        ->check(CLI::ExistingPath)
        ->option_text("MODEL");
    app.add_option("text", o_.text_file, "what to encode: a UTF-8 file")
        ->required()
        ->check(CLI::ExistingFile)
        ->option_text("TEXT");
    app.add_option("--repeats", o_.repeats, "the median of so many measurements is reported")
        ->check(CLI::PositiveNumber)
        ->capture_default_str();
    app.add_option("--word-bytes", o_.word_bytes_max, "longest word without a space")
        ->check(CLI::Range(1 << 16, 1 << 27))
        ->capture_default_str();
    app.add_flag("--json", json_, "print JSON");
  }

  absl::StatusOr<int> Run(const CLI::App&) override {
    if (!json_) {
      o_.progress = [](const std::string& line) { std::cout << line << std::endl; };
    }
    const auto report = RunBenchTokenizer(o_);
    if (!report.ok()) return report.status();
    if (json_) std::cout << report->dump(2) << "\n";
    return 0;
  }

 private:
  BenchTokenizerOptions o_;
  bool json_ = false;
};

}  // namespace

std::unique_ptr<Command> MakeBenchTokenizer() { return std::make_unique<BenchTokenizer>(); }

}  // namespace switchyard
