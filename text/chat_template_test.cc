#include "text/chat_template.h"

#include <gtest/gtest.h>

#include <filesystem>

#include "common/file.h"

namespace switchyard {
namespace {

using nlohmann::ordered_json;

absl::StatusOr<std::string> RenderSource(std::string_view source,
                                         const nlohmann::json& context = nlohmann::json::object()) {
  auto chat = ChatTemplate::Parse(source);
  if (!chat.ok()) return chat.status();
  return (*chat)->Render(context);
}

TEST(ChatTemplateTest, RendersAsJinja2) {
  const auto data = ReadFile("text/testdata/chat_templates.json", 1 << 20);
  ASSERT_TRUE(data.ok()) << data.status();
  const ordered_json cases = ordered_json::parse(*data);
  ASSERT_GE(cases.size(), 100u);
  for (const ordered_json& c : cases) {
    SCOPED_TRACE(c["name"].get<std::string>());
    auto chat = ChatTemplate::Parse(c["template"].get<std::string>());
    ASSERT_TRUE(chat.ok()) << chat.status();
    const auto text = (*chat)->Render(c["context"]);
    if (c.contains("expected")) {
      ASSERT_TRUE(text.ok()) << text.status();
      EXPECT_EQ(*text, c["expected"].get<std::string>());
    } else {
      EXPECT_EQ(text.status().code(), absl::StatusCode::kInvalidArgument);
      EXPECT_FALSE(c["error"].get<std::string>().empty());
    }
  }
}

TEST(ChatTemplateTest, ErrorsNameTheLine) {
  const auto expect = [](std::string_view source, const char* message) {
    const auto status = RenderSource(source).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << source;
    EXPECT_NE(status.message().find(message), absl::string_view::npos) << status;
  };
  expect("\n\n{{ raise_exception('no') }}", "line 3: no");
  expect("a\n{{ missing.field }}", "line 2: 'missing' is undefined");
  expect("{% if x %}", "line 1: the template ends");
  expect("\n{{ 1 + }}", "line 2: expected a value");
  expect("{{ 'abc }}", "line 1: a string without its end");
  expect("{{ [1) }}", "line 1: unbalanced");
  expect("{% include 'x' %}", "line 1: statement 'include' is not supported");
  expect("{{ 1 | frobnicate }}", "line 1: filter 'frobnicate'");
  expect("{{ 1 // 0 }}", "division by zero");
  expect("{{ 9223372036854775807 + 1 }}", "64 bits");
  expect("{% set a.b = 1 %}", "no namespace");
  expect("{% set ns = namespace() %}{% set ns.me = ns %}", "cannot hold a namespace");
  expect(
      "{% set ns = namespace(x=[1]) %}"
      "{% for i in range(300) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x }}",
      "200 levels");
  expect("\xff", "not UTF-8");
}

TEST(ChatTemplateTest, WorkAndOutputAreBounded) {
  const auto expect = [](const std::string& source) {
    EXPECT_EQ(RenderSource(source).status().code(), absl::StatusCode::kResourceExhausted) << source;
  };
  const std::string loop = "{% for i in range(99999) %}";
  expect(loop + loop + "{% endfor %}{% endfor %}");
  expect("{{ 'x' * 16777217 }}");
  expect("{% set s = 'x' * 9999999 %}{{ s }}{{ s }}");
  expect("{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}");
  const std::string ns = "{% set ns = namespace(x=[1]) %}";
  expect(ns + "{% for i in range(100) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}");
  expect("{{ ('x' * 9999)|list|map('replace', 'x', 'y' * 99999)|list|length }}");
  expect("{{ range(9999)|tojson(separators=('x' * 9999999, ':')) }}");
  expect("{% set x = 'x' * 9999999 %}" + loop + "{% if x is lower %}{% endif %}{% endfor %}");
  expect("{{ ('x ' * 999999).split(' ')|length }}");
  expect("{{ range(99999)|list * 99 }}");
}

TEST(ChatTemplateTest, LongTextsAndLargeNumbersAreExact) {
  EXPECT_EQ(
      *RenderSource("{% set s = 'é' * 999999 + 'ab' %}{{ s[999999] }}{{ s[-1] }}{{ s[-9999999] }}"),
      "ab");
  EXPECT_EQ(*RenderSource("{{ '9007199254740993'|int }}"), "9007199254740993");
  EXPECT_EQ(*RenderSource("{{ {'a': 1, 'a': 2} }}"), "{'a': 2}");
  EXPECT_EQ(*RenderSource("{{ [[1], [2, 3]]|sum(start=[]) }}"), "[1, 2, 3]");
  EXPECT_EQ(*RenderSource("{{ ['b', 'a', 'B', 1, 1.0]|unique|list }}"), "['b', 'a', 1]");
  EXPECT_FALSE(RenderSource("{{ '%d' % 1e300 }}").ok());
}

TEST(ChatTemplateTest, DeepNestingIsRefused) {
  for (const char* part : {"(", "[", "-", "not ", "{'a':", "a[", "f(", "1 if "}) {
    std::string source = "{{ ";
    for (int i = 0; i < 20000; ++i) source += part;
    EXPECT_FALSE(ChatTemplate::Parse(source + "1 }}").ok()) << part;
  }
  std::string chain = "{{ 1", blocks;
  for (int i = 0; i < 20000; ++i) {
    chain += " + 1";
    blocks += "{% if 1 %}";
  }
  EXPECT_FALSE(ChatTemplate::Parse(chain + " }}").ok());
  EXPECT_FALSE(ChatTemplate::Parse(blocks).ok());
}

TEST(ChatTemplateTest, HostileContextIsRefused) {
  nlohmann::json deep = 1;
  for (int i = 0; i < 1000; ++i) deep = nlohmann::json::array({deep});
  EXPECT_FALSE(RenderSource("x", {{"deep", deep}}).ok());
  EXPECT_FALSE(RenderSource("x", {{"text", "\xff"}}).ok());
  EXPECT_FALSE(RenderSource("x", nlohmann::json::array()).ok());
}

TEST(LoadChatTemplateTest, ReadsTheModelsTemplateAndTokens) {
  nlohmann::json tokens;
  const auto chat = LoadChatTemplate("models/fables-7m", &tokens);
  ASSERT_TRUE(chat.ok()) << chat.status();
  EXPECT_EQ(tokens["bos_token"], "<|endoftext|>");
  nlohmann::json context = tokens;
  context["messages"] = {{{"role", "user"}, {"content", "Once"}},
                         {{"role", "user"}, {"content", "upon"}}};
  EXPECT_EQ(*(*chat)->Render(context), "<|endoftext|>Once\nupon");
  context["messages"][0]["content"] = 3;
  EXPECT_EQ((*chat)->Render(context).status().message(),
            "chat template, line 1: content must be text");
}

TEST(LoadChatTemplateTest, KnowsTheOtherPlaces) {
  const std::string dir = testing::TempDir() + "/chat_template_test";
  std::filesystem::create_directories(dir);
  std::filesystem::remove(dir + "/chat_template.jinja");
  nlohmann::json tokens;
  EXPECT_EQ(LoadChatTemplate(dir + "/none", &tokens).status().code(), absl::StatusCode::kNotFound);
  const nlohmann::json config = {
      {"bos_token", {{"content", "<b>"}}},
      {"chat_template",
       {{{"name", "tool_use"}, {"template", "no"}}, {{"name", "default"}, {"template", "yes"}}}}};
  ASSERT_TRUE(WriteFileAtomically(dir + "/tokenizer_config.json", config.dump()).ok());
  auto chat = LoadChatTemplate(dir, &tokens);
  ASSERT_TRUE(chat.ok()) << chat.status();
  EXPECT_EQ(*(*chat)->Render(nlohmann::json::object()), "yes");
  EXPECT_EQ(tokens["bos_token"], "<b>");
  ASSERT_TRUE(WriteFileAtomically(dir + "/chat_template.jinja", "{{ bos_token }}").ok());
  chat = LoadChatTemplate(dir, &tokens);
  ASSERT_TRUE(chat.ok()) << chat.status();
  EXPECT_EQ(*(*chat)->Render(tokens), "<b>");
}

}  // namespace
}  // namespace switchyard
