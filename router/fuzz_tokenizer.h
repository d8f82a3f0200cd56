// router/fuzz_tokenizer.h: the model of the fuzzers of what clients send: small, with a tokenizer
// of single bytes and a few merges.
#pragma once

#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "absl/strings/str_format.h"
#include "common/check.h"
#include "router/router.h"
#include "text/tokenizer.h"

namespace switchyard {

inline ModelDescription FuzzModel() {
  ModelDescription model;
  model.id = "m";
  model.vocab_size = 300;  // more than the tokenizer has
  model.max_model_len = 64;
  model.eos_token_ids = {261};
  return model;
}

inline std::unique_ptr<Tokenizer> FuzzTokenizer() {
  nlohmann::ordered_json vocab;
  for (int b = 0; b < 256; ++b) vocab[absl::StrFormat("<0x%02X>", b)] = b;
  for (const char* token : {"a", "b", "ab", "<s>", " ", "</s>"}) vocab[token] = vocab.size();
  const nlohmann::ordered_json json = {
      {"model", {{"type", "BPE"}, {"byte_fallback", true}, {"vocab", vocab}, {"merges", {"a b"}}}},
      {"added_tokens",
       {{{"content", "<s>"}, {"id", 259}, {"special", true}},
        {{"content", "</s>"}, {"id", 261}, {"special", true}}}},
      {"decoder",
       {{"type", "Sequence"}, {"decoders", {{{"type", "ByteFallback"}}, {{"type", "Fuse"}}}}}},
      {"post_processor",
       {{"type", "TemplateProcessing"},
        {"single", {{{"SpecialToken", {{"id", "<s>"}}}}, {{"Sequence", {{"id", "A"}}}}}},
        {"special_tokens", {{"<s>", {{"ids", {259}}}}}}}}};
  auto tokenizer = Tokenizer::Parse(json.dump());
  SY_CHECK(tokenizer.ok());
  return *std::move(tokenizer);
}

}  // namespace switchyard
