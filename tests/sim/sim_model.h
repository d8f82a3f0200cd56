// tests/sim/sim_model.h: a model whose next token is a hash of the whole history, read back from
// every KV block of every layer: a lost, doubled, foreign or stale block changes all that follows.
#pragma once

#include <memory>
#include <vector>

#include "common/ids.h"
#include "kernels/sample.h"
#include "model/model.h"

namespace switchyard::sim {

class SimModel final : public Model {
 public:
  static constexpr int kVocab = 64, kLayers = 2, kPositions = 256, kEos = 1;

  SimModel();
  const ModelConfig& config() const override { return config_; }
  const ModelOptions& options() const override { return options_; }
  const std::string& numerics_id() const override { return numerics_id_; }
  const std::vector<std::string>& notices() const override { return notices_; }
  void UseDispatcher(Dispatcher*) override {}
  absl::Status Rehost(std::shared_ptr<const Placement>, SpareExperts*) override {
    return absl::FailedPreconditionError("the simulated model has no experts");
  }
  absl::StatusOr<std::unique_ptr<ExpertSource>> OpenExperts() const override {
    return absl::FailedPreconditionError("the simulated model has no experts");
  }
  absl::Status Forward(const ForwardBatch& batch, KvStorage& kv, LayerObserver* observer,
                       Matrix<float> logits) override;

  // The tokens that an undisturbed run would give: up to max_tokens, or the first kEos unless that
  // is ignored. No KV is involved.
  static std::vector<TokenId> Expected(std::vector<TokenId> history, const SamplingParams& sampling,
                                       int max_tokens, bool ignore_eos);

 private:
  ModelConfig config_;
  ModelOptions options_;
  const std::string numerics_id_ = "sim";
  const std::vector<std::string> notices_;
  std::vector<uint64_t> inputs_;  // [T] what a layer passes to the next
};

}  // namespace switchyard::sim
