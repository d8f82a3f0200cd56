// switchyard verify: a model's logits against stored ones.
#include "model/verify.h"

#include <iostream>

#include "cli/command.h"
#include "cli/flags.h"
#include "common/status_macros.h"

namespace switchyard {
namespace {

class VerifyCommand final : public Command {
 public:
  std::string name() const override { return "verify"; }
  std::string help() const override { return "compares logits with a stored reference"; }

  void AddFlags(CLI::App& app) override {
    AddModelFlag(app, &model_);
    app.add_option("golden,--golden", golden_, "safetensors with input_ids, logits, greedy_ids")
        ->check(CLI::ExistingFile)
        ->option_text("GOLDEN");
    app.add_flag("--json", json_, "the report as JSON");
    engine_.AddTo(app);
  }
  absl::Status CheckFlags() const override {
    RETURN_IF_ERROR(CheckModelGiven(model_));
    return golden_.empty() ? absl::InvalidArgumentError("golden: a file is wanted")
                           : absl::OkStatus();
  }

  absl::StatusOr<int> Run(const CLI::App&) override {
    ModelOptions options = engine_.Model();
    options.max_batch_tokens = 0;  // the reference's sequences are one batch each
    options.progress = LoadProgress(model_);
    ASSIGN_OR_RETURN(const std::unique_ptr<Model> model, Model::Load(model_, options));
    ASSIGN_OR_RETURN(const VerifyReport report, Verify(*model, golden_));
    std::cout << (json_ ? VerifyReportJson(report) : VerifyReportText(report)) << std::endl;
    return report.passed ? 0 : 1;
  }

 private:
  std::string model_, golden_;
  bool json_ = false;
  EngineFlags engine_;
};

}  // namespace

std::unique_ptr<Command> MakeVerify() { return std::make_unique<VerifyCommand>(); }

}  // namespace switchyard
