#include "common/fuzz_json.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "common/fuzz_tally.h"

namespace switchyard {
namespace {

using Json = nlohmann::ordered_json;  // fields stay where they are

constexpr size_t kDepthMax = 100;  // deeper ones are for the parser alone
constexpr size_t kStringGrowth = 16;

// Brackets in strings count too: it is an upper bound.
size_t Depth(std::string_view text) {
  size_t open = 0, deepest = 0;
  for (const char c : text) {
    if (c == '[' || c == '{') deepest = std::max(deepest, ++open);
    if ((c == ']' || c == '}') && open > 0) --open;
  }
  return deepest;
}

void Collect(Json& node, std::vector<Json*>* nodes) {
  nodes->push_back(&node);
  for (Json& child : node) {
    if (node.is_structured()) Collect(child, nodes);
  }
}

class Editor {
 public:
  explicit Editor(unsigned seed) : rng_(seed) {}

  size_t Below(size_t n) { return n == 0 ? 0 : rng_() % n; }

  std::string Bytes(std::string text, size_t growth) {
    const size_t size = text.size();
    text.resize(size + growth);
    text.resize(LLVMFuzzerMutate(reinterpret_cast<uint8_t*>(text.data()), size, text.size()));
    return text;
  }

  void Edit(Json* root) {
    std::vector<Json*> nodes;
    Collect(*root, &nodes);
    Json& node = *nodes[Below(nodes.size())];
    switch (Below(4)) {
      case 0: {  // what stands elsewhere
        Json other = *nodes[Below(nodes.size())];
        node = std::move(other);
        break;
      }
      case 1:
        Shape(node, *nodes[Below(nodes.size())]);
        break;
      default:
        Scalar(node);
    }
  }

 private:
  // Adds to a list or an object, or takes away.
  void Shape(Json& node, const Json& other) {
    if (!node.is_structured()) return Scalar(node);
    const size_t at = Below(node.size());
    if (Below(2) == 0 && !node.empty()) {
      if (node.is_array()) node.erase(at);
      if (node.is_object()) node.erase(std::next(node.begin(), static_cast<std::ptrdiff_t>(at)));
      return;
    }
    Json copy = other;
    if (node.is_array()) node.push_back(std::move(copy));
    if (node.is_object() && copy.is_string()) node[copy.get<std::string>()] = Below(300);
  }

  void Scalar(Json& node) {
    static const Json kValues[] = {
        nullptr,    true,          false,         0,     1,       -1, 2,   16,        255,
        256,        1024,          0.5,           1e308, -1e-308, "", "a", INT32_MAX, INT64_MIN,
        UINT64_MAX, Json::array(), Json::object()};
    if (node.is_string() && Below(8) != 0) {
      node = Bytes(node.get<std::string>(), kStringGrowth);
    } else if (node.is_boolean()) {
      node = !node.get<bool>();
    } else if (node.is_number_integer() && Below(2) == 0) {
      node = static_cast<int64_t>(static_cast<uint64_t>(node.get<int64_t>()) + Below(5) - 2);
    } else {
      node = kValues[Below(std::size(kValues))];
    }
  }

  std::minstd_rand rng_;
};

}  // namespace

size_t MutateJson(uint8_t* data, size_t size, size_t size_max, unsigned seed,
                  const std::function<void(nlohmann::ordered_json*)>& repair) {
  Editor editor(seed);
  // What libFuzzer keeps is for the most part what parsers refuse in new ways, and its children are
  // refused too: half of them begin with an input that was not.
  const std::vector<std::string>& whole = FuzzTally::Get().first();
  if (const size_t at = editor.Below(2 * whole.size()); at < whole.size()) {
    size = std::min(whole[at].size(), size_max);
    std::memcpy(data, whole[at].data(), size);
  }
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const size_t zero = std::min(input.find('\0'), size);
  const std::string text(input.substr(zero));
  const size_t what = editor.Below(8);
  if (what == 0 || Depth(input.substr(0, zero)) > kDepthMax) {
    return LLVMFuzzerMutate(data, size, size_max);
  }
  if (what < 4 && text.size() > 1) {
    return zero + 1 + LLVMFuzzerMutate(data + zero + 1, size - zero - 1, size_max - zero - 1);
  }
  Json root = Json::parse(input.substr(0, zero), nullptr, /*allow_exceptions=*/false);
  if (root.is_discarded()) return LLVMFuzzerMutate(data, size, size_max);
  do {
    editor.Edit(&root);
  } while (editor.Below(3) == 0);
  if (repair != nullptr && editor.Below(8) != 0) repair(&root);
  const std::string out = root.dump(-1, ' ', false, Json::error_handler_t::replace) + text;
  if (out.size() > size_max) return LLVMFuzzerMutate(data, size, size_max);
  std::memcpy(data, out.data(), out.size());
  return out.size();
}

}  // namespace switchyard
