// Fuzz entry: a tokenizer.json from anywhere, and a text for it after the first zero byte. What it
// encodes, whole or in pieces, must decode; a stream of pieces is the decoded text.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "common/check.h"
#include "common/fuzz_json.h"
#include "common/fuzz_tally.h"
#include "text/tokenizer.h"

namespace {

using Json = nlohmann::ordered_json;

// The string `key` of `object`, or nothing.
std::string Text(const Json& object, const char* key) {
  const auto it = object.is_object() ? object.find(key) : object.end();
  return it != object.end() && it->is_string() ? it->get<std::string>() : "";
}

// Ids in order, merges of tokens that there are, the ids of special tokens where they are: a change
// of one entry would otherwise make nearly every file one that is refused for the others.
void Repair(Json* root) {
  if (!root->is_object() || !root->contains("model")) return;
  Json& model = (*root)["model"];
  if (!model.is_object() || !model.contains("vocab") || !model["vocab"].is_object()) return;
  int next = 0;
  for (Json& id : model["vocab"]) id = next++;
  const Json vocab = model["vocab"];
  if (Json& merges = model["merges"]; merges.is_array()) {
    Json good = Json::array();
    for (const Json& merge : merges) {
      const std::string line = merge.is_string() ? merge.get<std::string>() : "";
      const size_t space = std::min(line.find(' '), line.size());
      const std::string left = line.substr(0, space);
      const std::string right = line.substr(std::min(space + 1, line.size()));
      const bool fits =
          vocab.contains(left) && vocab.contains(right) && vocab.contains(left + right);
      if (fits || merge.is_array()) good.push_back(merge);
    }
    merges = good;
  }
  if (!vocab.contains(Text(model, "unk_token"))) model["unk_token"] = nullptr;
  Json ids = vocab;  // of added tokens too
  if (root->contains("added_tokens") && (*root)["added_tokens"].is_array()) {
    for (Json& token : (*root)["added_tokens"]) {
      const std::string content = Text(token, "content");
      if (content.empty()) continue;
      if (!ids.contains(content)) ids[content] = next++;
      token["id"] = ids[content];
    }
  }
  const auto specials = nlohmann::json::json_pointer("/post_processor/special_tokens");
  if (!root->contains(specials) || !(*root)[specials].is_object()) return;
  for (auto& [name, special] : (*root)[specials].items()) {
    if (special.is_object() && ids.contains(name)) special["ids"] = Json::array({ids[name]});
  }
}

}  // namespace

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t size_max,
                                          unsigned seed) {
  return switchyard::MutateJson(data, size, size_max, seed, Repair);
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const size_t zero = std::min(input.find('\0'), size);
  const auto tokenizer = switchyard::Tokenizer::Parse(input.substr(0, zero));
  switchyard::FuzzTally::Get().Count(tokenizer.ok(), input);
  if (!tokenizer.ok()) return 0;
  const std::string_view text = input.substr(std::min(zero + 1, size));
  const auto ids = (*tokenizer)->Encode(text, true);
  if (!ids.ok()) return 0;
  if (const size_t most = (*tokenizer)->bytes_per_token_max(); most > 0) {
    SY_CHECK(text.size() <= ids->size() * most);
  }
  for (const bool skip : {false, true}) {
    const auto decoded = (*tokenizer)->Decode(*ids, skip);
    SY_CHECK(decoded.ok());
    switchyard::DetokenizerStream stream(tokenizer->get(), skip);
    std::string streamed;
    for (const switchyard::TokenId id : *ids) streamed += stream.Push(id);
    SY_CHECK(streamed + stream.Finish() == *decoded);
  }
  return 0;
}
