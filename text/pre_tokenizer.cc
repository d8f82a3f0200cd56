#include "text/pre_tokenizer.h"

#include <algorithm>

#include "common/status_macros.h"
#include "text/byte_alphabet.h"
#include "text/pattern.h"
#include "text/utf8.h"

namespace switchyard {
namespace {

// What ByteLevel with use_regex cuts by (GPT-2).
constexpr char kGpt2Pattern[] =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

struct Part {
  TextRange range;
  bool is_match;
};

// `text` from end to end: matches and what lies between them.
std::vector<Part> Cover(size_t size, const std::vector<TextRange>& matches) {
  std::vector<Part> parts;
  parts.reserve(2 * matches.size() + 1);
  size_t done = 0;
  for (const TextRange& m : matches) {
    if (m.begin > done) parts.push_back({{done, m.begin}, false});
    parts.push_back({m, true});
    done = m.end;
  }
  if (done < size) parts.push_back({{done, size}, false});
  return parts;
}

}  // namespace

absl::StatusOr<PreTokenizer> PreTokenizer::Parse(std::optional<Json> json) {
  PreTokenizer pre;
  if (!json) return pre;
  RETURN_IF_ERROR(
      VisitSequence(*json, "pre_tokenizer", "pretokenizers",
                    [&](Json step, std::string_view type) { return pre.AddStep(step, type); }));
  return pre;
}

absl::Status PreTokenizer::AddStep(Json json, std::string_view type) {
  if (type == "Split") return AddSplit(json);
  if (type == "Metaspace") return AddMetaspace(json);
  if (type == "Digits") {
    ASSIGN_OR_RETURN(Regex pattern, Regex::Compile("\\p{N}"));
    ASSIGN_OR_RETURN(const bool individual,
                     BoolField(json, "pre_tokenizer Digits", "individual_digits", false));
    const Behavior behavior = individual ? Behavior::kIsolated : Behavior::kContiguous;
    steps_.emplace_back(Split{std::move(pattern), behavior, false});
    return absl::OkStatus();
  }
  if (type == "ByteLevel") {
    constexpr std::string_view kName = "pre_tokenizer ByteLevel";
    ByteLevel step;
    ASSIGN_OR_RETURN(step.add_prefix_space, BoolField(json, kName, "add_prefix_space", true));
    ASSIGN_OR_RETURN(const bool use_regex, BoolField(json, kName, "use_regex", true));
    if (use_regex) {
      ASSIGN_OR_RETURN(Regex pattern, Regex::Compile(kGpt2Pattern));
      step.split = Split{std::move(pattern), Behavior::kIsolated, false};
    }
    steps_.emplace_back(std::move(step));
    return absl::OkStatus();
  }
  return Unsupported("pre_tokenizer", "type", type,
                     "Split, Digits, ByteLevel, Metaspace, Sequence");
}

absl::Status PreTokenizer::AddSplit(Json json) {
  constexpr std::string_view kName = "pre_tokenizer Split";
  static constexpr std::pair<std::string_view, Behavior> kBehaviors[] = {
      {"Removed", Behavior::kRemoved},
      {"Isolated", Behavior::kIsolated},
      {"MergedWithPrevious", Behavior::kMergedWithPrevious},
      {"MergedWithNext", Behavior::kMergedWithNext},
      {"Contiguous", Behavior::kContiguous}};
  ASSIGN_OR_RETURN(Regex pattern, ParsePattern(json, kName));
  ASSIGN_OR_RETURN(std::string_view name, StringField(json, kName, "behavior"));
  ASSIGN_OR_RETURN(const bool invert, BoolField(json, kName, "invert", false));
  for (const auto& [known, behavior] : kBehaviors) {
    if (known != name) continue;
    steps_.emplace_back(Split{std::move(pattern), behavior, invert});
    return absl::OkStatus();
  }
  return Unsupported(kName, "behavior", name,
                     "Removed, Isolated, MergedWithPrevious, MergedWithNext, Contiguous");
}

absl::Status PreTokenizer::AddMetaspace(Json json) {
  constexpr std::string_view kName = "pre_tokenizer Metaspace";
  ASSIGN_OR_RETURN(std::string_view replacement, StringField(json, kName, "replacement"));
  ASSIGN_OR_RETURN(const bool split, BoolField(json, kName, "split", true));
  Metaspace step{std::string(replacement), Metaspace::kAlways, std::nullopt};
  if (FindField(json, "prepend_scheme")) {
    ASSIGN_OR_RETURN(std::string_view scheme, StringField(json, kName, "prepend_scheme"));
    if (scheme == "never") {
      step.prepend = Metaspace::kNever;
    } else if (scheme == "first") {
      step.prepend = Metaspace::kFirst;
    } else if (scheme != "always") {
      return Unsupported(kName, "prepend_scheme", scheme, "always, first, never");
    }
  }
  if (replacement.empty()) return Unsupported(kName, "replacement", "", "one character");
  if (split) {
    ASSIGN_OR_RETURN(Regex pattern, Regex::Literal(replacement));
    step.split = Split{std::move(pattern), Behavior::kMergedWithNext, false};
  }
  steps_.emplace_back(std::move(step));
  return absl::OkStatus();
}

bool PreTokenizer::byte_level() const {
  return std::any_of(steps_.begin(), steps_.end(),
                     [](const auto& step) { return std::holds_alternative<ByteLevel>(step); });
}

bool PreTokenizer::removes() const {
  return std::any_of(steps_.begin(), steps_.end(), [](const auto& step) {
    const auto* split = std::get_if<Split>(&step);
    return split != nullptr && split->behavior == Behavior::kRemoved;
  });
}

absl::StatusOr<Words> PreTokenizer::Apply(std::string text, size_t head) const {
  Words words{std::move(text), {}, head};
  if (words.text.empty()) return words;
  words.ranges.push_back({0, words.text.size()});
  for (const auto& step : steps_) {
    if (const auto* split = std::get_if<Split>(&step)) {
      ASSIGN_OR_RETURN(words, ApplySplit(*split, std::move(words)));
    } else if (const auto* byte_level = std::get_if<ByteLevel>(&step)) {
      ASSIGN_OR_RETURN(words, ApplyByteLevel(*byte_level, words));
    } else if (const auto* metaspace = std::get_if<Metaspace>(&step)) {
      ASSIGN_OR_RETURN(words, ApplyMetaspace(*metaspace, words));
    }
  }
  return words;
}

absl::StatusOr<Words> PreTokenizer::ApplySplit(const Split& split, Words words) {
  std::vector<TextRange> out;
  for (const TextRange& word : words.ranges) {
    const size_t size = word.end - word.begin;
    ASSIGN_OR_RETURN(const std::vector<TextRange> matches,
                     split.pattern.FindAll(std::string_view(words.text).substr(word.begin, size)));
    const size_t first = out.size();  // only parts of this word are joined
    bool previous_match = false;
    const auto add = [&](const Part& part) {
      const bool match = part.is_match != split.invert;
      bool join = false;
      if (split.behavior == Behavior::kContiguous) join = match == previous_match;
      if (split.behavior == Behavior::kMergedWithPrevious ||
          split.behavior == Behavior::kMergedWithNext) {
        join = match && !previous_match;
      }
      previous_match = match;
      if (split.behavior == Behavior::kRemoved && match) return;
      const TextRange range{word.begin + part.range.begin, word.begin + part.range.end};
      if (join && out.size() > first) {  // parts touch, in either direction
        out.back() = {std::min(out.back().begin, range.begin), std::max(out.back().end, range.end)};
      } else {
        out.push_back(range);
      }
    };
    const std::vector<Part> parts = Cover(size, matches);
    if (split.behavior == Behavior::kMergedWithNext) {
      std::for_each(parts.rbegin(), parts.rend(), add);
      std::reverse(out.begin() + first, out.end());
    } else {
      std::for_each(parts.begin(), parts.end(), add);
    }
  }
  std::erase_if(out, [](const TextRange& r) { return r.begin == r.end; });
  words.ranges = std::move(out);
  return words;
}

absl::StatusOr<Words> PreTokenizer::ApplyByteLevel(const ByteLevel& step, const Words& words) {
  Words spaced;
  for (const TextRange& r : words.ranges) {
    const size_t begin = spaced.text.size();
    if (step.add_prefix_space && words.text[r.begin] != ' ') spaced.text.push_back(' ');
    spaced.text.append(words.text, r.begin, r.end - r.begin);
    if (r.begin < words.head) {
      spaced.head = spaced.text.size() - (r.end - std::min(r.end, words.head));
    }
    spaced.ranges.push_back({begin, spaced.text.size()});
  }
  if (step.split) {
    ASSIGN_OR_RETURN(spaced, ApplySplit(*step.split, std::move(spaced)));
  }
  const ByteAlphabet alphabet;
  Words out;
  out.text.reserve(spaced.text.size() * 5 / 4);
  out.ranges.reserve(spaced.ranges.size());
  for (const TextRange& r : spaced.ranges) {
    const size_t begin = out.text.size();
    for (size_t i = r.begin; i < r.end; ++i) {
      AppendUtf8(alphabet.CharOf(static_cast<unsigned char>(spaced.text[i])), &out.text);
      if (i < spaced.head) out.head = out.text.size();
    }
    out.ranges.push_back({begin, out.text.size()});
  }
  return out;
}

absl::StatusOr<Words> PreTokenizer::ApplyMetaspace(const Metaspace& step, const Words& words) {
  Words out;
  for (const TextRange& r : words.ranges) {
    const size_t begin = out.text.size();
    const std::string_view word = std::string_view(words.text).substr(r.begin, r.end - r.begin);
    const bool wanted = step.prepend == Metaspace::kAlways ||
                        (step.prepend == Metaspace::kFirst && r.begin < words.head);
    if (wanted && word[0] != ' ' && !word.starts_with(step.replacement)) {
      out.text.append(step.replacement);
    }
    for (size_t i = r.begin; i < r.end; ++i) {
      if (words.text[i] == ' ') {
        out.text.append(step.replacement);
      } else {
        out.text.push_back(words.text[i]);
      }
      if (i < words.head) out.head = out.text.size();
    }
    out.ranges.push_back({begin, out.text.size()});
  }
  if (step.split) return ApplySplit(*step.split, std::move(out));
  return out;
}

}  // namespace switchyard
