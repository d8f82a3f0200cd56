// engine/test_model.h: the stored model, and one that fails when told, for the engine's tests.
#pragma once

#include <limits>

#include "common/check.h"
#include "model/model.h"

namespace switchyard {

// models/fables-7m, loaded once per test process.
inline Model& TestModel() {
  static const std::unique_ptr<Model> model = [] {
    auto loaded = Model::Load("models/fables-7m", {});
    SY_CHECK_MSG(loaded.ok(), std::string(loaded.status().message()));
    return *std::move(loaded);
  }();
  return *model;
}

// The same with prompts expanded.
inline Model& ExpandingModel() {
  static const std::unique_ptr<Model> model = [] {
    ModelOptions options;
    options.mla = MlaForms::kAuto;
    auto loaded = Model::Load("models/fables-7m", options);
    SY_CHECK_MSG(loaded.ok(), std::string(loaded.status().message()));
    return *std::move(loaded);
  }();
  return *model;
}

// Computes as `model` does, then spoils the result of chosen steps.
class FaultyModel final : public Model {
 public:
  explicit FaultyModel(Model& model) : model_(model) {}

  const ModelConfig& config() const override { return model_.config(); }
  const ModelOptions& options() const override { return model_.options(); }
  const std::string& numerics_id() const override { return model_.numerics_id(); }
  const std::vector<std::string>& notices() const override { return model_.notices(); }
  absl::Status Rehost(std::shared_ptr<const Placement> placement, SpareExperts* spare) override {
    return model_.Rehost(std::move(placement), spare);
  }
  absl::StatusOr<std::unique_ptr<ExpertSource>> OpenExperts() const override {
    return model_.OpenExperts();
  }
  void UseDispatcher(Dispatcher* dispatcher) override { model_.UseDispatcher(dispatcher); }
  absl::Status Forward(const ForwardBatch& batch, KvStorage& kv, LayerObserver* observer,
                       Matrix<float> logits) override {
    const absl::Status status = model_.Forward(batch, kv, observer, logits);
    if (poison_logits && logits.rows() > 0) {
      logits(0, 7) = std::numeric_limits<float>::quiet_NaN();
    }
    return fail_every > 0 && ++steps_ % fail_every == 0 ? absl::UnavailableError("a peer is lost")
                                                        : status;
  }

  int fail_every = 0;          // each n-th step fails after it has computed
  bool poison_logits = false;  // of the step's first row

 private:
  Model& model_;
  int steps_ = 0;
};

}  // namespace switchyard
