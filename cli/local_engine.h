// cli/local_engine.h: a model, its engine and its tokenizer in this process, for commands that need
// no cluster.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "cli/flags.h"
#include "engine/engine.h"
#include "text/tokenizer.h"

namespace switchyard {

struct LocalEngine {
  std::unique_ptr<Tokenizer> tokenizer;  // null: the checkpoint has none
  std::unique_ptr<Model> model;
  std::unique_ptr<Engine> engine;
};

absl::StatusOr<LocalEngine> LoadLocalEngine(const std::string& model, const EngineFlags& flags);

// The tokenizer of a checkpoint's directory, or null if it has no tokenizer.json.
absl::StatusOr<std::unique_ptr<Tokenizer>> LoadTokenizerIfThere(const std::string& model);

// The ids of `text`; kFailedPrecondition if there is no tokenizer.
absl::StatusOr<std::vector<TokenId>> EncodePrompt(const Tokenizer* tokenizer,
                                                  const std::string& text);

}  // namespace switchyard
