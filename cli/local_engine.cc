#include "cli/local_engine.h"

#include "common/status_macros.h"

namespace switchyard {

absl::StatusOr<std::unique_ptr<Tokenizer>> LoadTokenizerIfThere(const std::string& model) {
  auto tokenizer = Tokenizer::Load(model);
  if (absl::IsNotFound(tokenizer.status())) return nullptr;
  return tokenizer;
}

absl::StatusOr<std::vector<TokenId>> EncodePrompt(const Tokenizer* tokenizer,
                                                  const std::string& text) {
  if (tokenizer != nullptr) return tokenizer->Encode(text, /*add_special_tokens=*/true);
  return absl::FailedPreconditionError(
      "prompt: the checkpoint has no tokenizer.json, so only token ids can be given");
}

absl::StatusOr<LocalEngine> LoadLocalEngine(const std::string& model, const EngineFlags& flags) {
  LocalEngine local;
  ASSIGN_OR_RETURN(local.tokenizer, LoadTokenizerIfThere(model));
  ModelOptions options = flags.Model();
  options.progress = LoadProgress(model);
  ASSIGN_OR_RETURN(local.model, Model::Load(model, options));
  ASSIGN_OR_RETURN(local.engine, Engine::Create(local.model.get(), flags.engine));
  return local;
}

}  // namespace switchyard
