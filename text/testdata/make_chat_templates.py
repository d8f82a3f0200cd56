#!/usr/bin/env python3
"""Renders the cases below with Jinja2, configured as transformers does, into chat_templates.json.

Run with jinja2 installed:  python3 make_chat_templates.py > chat_templates.json
"""
import datetime
import json

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment


def raise_exception(message):
    raise TemplateError(message)


def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


class GenerationTag(Extension):
    """{% generation %}: transformers marks with it what the assistant says; the text stays."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return nodes.CallBlock(self.call_method("_text"), [], [], body).set_lineno(line)

    def _text(self, caller):
        return caller()


def strftime_now(form):
    return datetime.datetime.now().strftime(form)


ENV = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, loopcontrols])
ENV.filters["tojson"] = tojson
ENV.globals["raise_exception"] = raise_exception
ENV.globals["strftime_now"] = strftime_now

CHAT = [
    {"role": "system", "content": " You are terse. "},
    {"role": "user", "content": "Hi, what's 2+2?"},
    {"role": "assistant", "content": "<think>\nsums\n</think>\n\n4"},
    {"role": "user", "content": "Danke schön 你好\n"},
]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "It's \"the\" weather <here> & now",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
]
BASE = {"messages": CHAT, "bos_token": "<s>", "eos_token": "</s>", "add_generation_prompt": True}

CASES = {
    "chatml": """{% for m in messages %}
{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' + '\\n' }}
{% endfor %}
{% if add_generation_prompt %}
{{ '<|im_start|>assistant\\n' }}
{% endif %}
""",
    "headers": """{{- bos_token }}
{%- for message in messages %}
    {%- set text = '<|head|>' + message.role + '<|/head|>\\n\\n' + message.content | trim + '<|eot|>' %}
    {%- if loop.index0 == 0 %}
        {%- set text = '!' ~ text %}
    {%- endif %}
    {{- text }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|head|>assistant<|/head|>\\n\\n' }}{% endif %}
""",
    "inst": """{%- if messages[0]["role"] == "system" -%}
    {%- set system = messages[0]["content"] | trim -%}
    {%- set rest = messages[1:] -%}
{%- else -%}
    {%- set rest = messages -%}
{%- endif -%}
{{ bos_token }}
{%- for m in rest -%}
    {%- if (m['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception('roles must alternate') }}
    {%- endif -%}
    {%- if m.role == 'user' -%}
        {%- if loop.first and system is defined -%}
            {{ ' [INST] ' + system + '\\n\\n' + m.content + ' [/INST]' }}
        {%- else -%}
            {{ ' [INST] ' + m.content + ' [/INST]' }}
        {%- endif -%}
    {%- elif m.role == 'assistant' -%}
        {{ ' ' + m.content + eos_token }}
    {%- else -%}
        {{ raise_exception('unknown role ' ~ m.role) }}
    {%- endif -%}
{%- endfor -%}
""",
    "namespace": """{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}
{% set ns = namespace(is_first=false, system='', count=0) %}
{%- for message in messages %}{% if message['role'] == 'system' %}{% set ns.system = message['content'] %}{% endif %}{% endfor %}
{{ bos_token }}{{ ns.system }}
{%- for message in messages %}
{%- if message['role'] == 'user' %}{% set ns.count = ns.count + 1 %}{{ '<U>' + message['content'] }}{% endif %}
{%- if message['role'] == 'assistant' and message['content'] is not none %}
{% set content = message['content'] %}
{% if '</think>' in content %}{% set content = content.split('</think>')[-1].lstrip('\\n') %}{% endif %}
{{ '<A>' + content + eos_token }}
{%- endif %}
{%- endfor -%}
{% if add_generation_prompt and not ns.is_first %}{{ '<A>' }}{{ ns.count }}{% endif %}
""",
    "tools": """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}
        {{- messages[0].content + '\\n\\n' }}
    {%- endif %}
    {{- "# Tools\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools>\\n" }}
    {{- tools | tojson(indent=2) }}
{%- endif %}
{%- for t in tools %}{{ t.function.name }}({{ t.function.parameters.properties.keys() | join(', ') }}){% endfor %}
{%- for k, v in tools[0].function.parameters.items() %}[{{ k }}:{{ v if v is string else v | length }}]{% endfor %}
""",
    "last_query": """{%- set ns = namespace(multi=true, last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi and message.role == "user" and message.content is string and not(message.content.startswith('<tool>') and message.content.endswith('</tool>')) %}
        {%- set ns.multi = false %}
        {%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{{- ns.last }}
{%- for message in messages %}
    {%- set think = '' %}
    {%- if message.role == 'assistant' and '</think>' in message.content %}
        {%- set think = message.content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
    {%- endif %}
    {{- '\\n' ~ loop.index ~ ':' ~ think.strip('s') ~ (' (last)' if loop.last) }}
{%- endfor %}
""",
    "macros": """{% macro turn(role, text='none', end=true) -%}
<{{ role }}>{{ text | upper }}{{ '</' ~ role ~ '>' if end else '' }}
{%- endmacro %}
{% for m in messages if m.role != 'system' %}
  {{ turn(m.role, m.content, end=not loop.last) }}
{% else %}
nobody
{% endfor %}
{{ turn('x') }}|{{ turn(role='y', end=false) }}
{% set block %}
 a {{ bos_token }}
{% endset %}
[{{ block }}]
""",
    "whitespace": """  {# comment #}
A
  {% if true %}
    B
  {% endif %}  
	{%- if false %} no {%- else -%}  C  {%+ endif %}
  {{ 'x' -}}   y
 z {% if true +%}
w{% endif %}
{{- '1' }}
{#- gone -#}   2
   {%+ set q = 3 %}
{{ q }}


""",
    "values": """{{ 1 }} {{ 1.0 }} {{ 1e20 }} {{ 0.00001 }} {{ 1/3 }} {{ 7//2 }} {{ -7//2 }} {{ -7 % 3 }} {{ 2**10 }} {{ true }} {{ none }} {{ missing }}
{{ [1, 'a', "it's", none, true, 1.5] }} {{ {'a': [1], "b": {'c': 'd"'}} }} {{ 'a\\tb' }} {{ ['a\\n'] }}
{{ 1 < 2 <= 2 }} {{ 'a' < 'b' }} {{ 1 == 1.0 }} {{ [1,2] == [1,2] }} {{ 'b' in 'abc' }} {{ 3 not in [1,2] }} {{ 'k' in {'k': 1} }}
{{ not true or false and true }} {{ 'x' ~ 1 ~ none }} {{ 1 + 2 * 3 - 4 / 2 }} {{ -2 ** 2 }} {{ (1, 2) | length }} {{ 'ab' * 2 }} {{ [1] + [2] }}
{{ 'a' 'b' }} {{ 1_000 }} {{ 'yes' if missing else 'no' }} {{ missing or 'default' }} {{ '' or 'e' }} {{ 0 and 1 }}
""",
    "filters": """{{ '  pad ' | trim }}|{{ 'xxaxx' | trim('x') }}|{{ [1,2,3] | first }}{{ [1,2,3] | last }}|{{ 'straße ÄÖ' | upper }}|{{ 'ÄÖ' | lower }}
{{ 'hello world' | capitalize }}|{{ 'hello wORLD-x' | title }}|{{ 'aXbXc' | replace('X', '-') }}|{{ 'aXbXc' | replace('X', '-', 1) }}|{{ ['a', 1, none] | join(', ') }}
{{ missing | default('d') }}|{{ '' | default('d') }}|{{ '' | default('d', true) }}|{{ 'a"é<\\u0001' | tojson }}|{{ {'b': 1, 'a': [true, none, 1.5]} | tojson }}|{{ [] | tojson(indent=2) }}
{{ messages | map(attribute='role') | join('/') }}|{{ messages | selectattr('role', 'equalto', 'user') | list | length }}|{{ messages | rejectattr('role', 'in', ['user', 'system']) | map(attribute='content') | first | length }}
{{ '42' | int + 1 }}|{{ 'x' | int }}|{{ '1.5' | float }}|{{ 3.7 | int }}|{{ 'abc' | list }}|{{ 'abc' | reverse }}|{{ ['a', 'b'] | map('upper') | list }}|{{ 12 | string | length }}|{{ -3 | abs }}|{{ 'né' | length }}
""",
    "tests": """{{ 'a' is string }}{{ 1 is string }}{{ none is none }}{{ missing is defined }}{{ missing is not defined }}{{ {} is mapping }}{{ [] is mapping }}
{{ [] is iterable }}{{ 'a' is iterable }}{{ 1 is iterable }}{{ 1 is number }}{{ 1.5 is number }}{{ 1 is integer }}{{ true is boolean }}{{ true is true }}{{ 3 is odd }}{{ 3 is even }}{{ 9 is divisibleby 3 }}
{{ 'x' is eq 'x' }}{{ 'x' is equalto('y') }}{{ 1 is in [1, 2] }}{{ not 1 is in [1, 2] }}{{ messages is sequence }}{{ messages[0] is mapping and messages[0].content is string }}{{ messages[0].name is undefined }}
""",
    "slices": """{% set l = [0,1,2,3,4,5] %}{{ l[1:3] }}{{ l[:-2] }}{{ l[-2:] }}{{ l[::2] }}{{ l[::-1] }}{{ l[4:1:-2] }}{{ l[10:] }}{{ l[-1] }}{{ l[9] }}|{{ 'héllo'[1:3] }}|{{ 'héllo'[-1] }}|{{ 'abc'[::-1] }}
{{ messages[1]['content'][3:7] }} {{ messages[-1].role[0] }} {{ 'a,b,,c'.split(',') }} {{ ' a  b '.split() }} {{ 'a-b-c'.split('-', 1) }} {{ 'x'.upper().lower() }} {{ {'a': 1}.get('b', 2) }} {{ {'a': 1}.get('b') }} {{ {'a': 1}['a'] }}
""",
    "loops": """{% for i in range(5) %}{% if i == 1 %}{% continue %}{% endif %}{% if i == 4 %}{% break %}{% endif %}{{ loop.index }}{{ loop.revindex }}{{ loop.length }}{{ ',' if not loop.last }}{% endfor %}

{% for a, b in [(1, 2), (3, 4)] %}{{ a }}-{{ b }};{% endfor %}
{% for x in [] %}no{% else %}empty{% endfor %}
{% for i in range(2) %}{% for j in range(2, 8, 3) %}{{ loop.index0 }}{{ j }} {% endfor %}{{ loop.first }}{% endfor %}
{% set x = 1 %}{% for i in [1,2] %}{% set x = x + i %}{{ x }}{% endfor %}{{ x }}
{% for m in messages %}{{ loop.previtem.role if loop.previtem is defined else '^' }}>{{ m.role }}>{{ loop.nextitem.role if not loop.last else '$' }} {% endfor %}
{% for c in 'né' %}[{{ c }}]{% endfor %}{% for k in {'p': 1, 'q': 2} %}{{ k }}{% endfor %}{% for u in missing %}never{% endfor %}
""",
    "raises": """{{ bos_token }}
{% for m in messages %}
{% if loop.index == 3 %}{{ raise_exception('no third message') }}{% endif %}
{% endfor %}""",
    # ---- shapes of real templates, rendered over every conversation of INPUTS
    "*chatml_default_system": """{%- if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\\nYou help.<|im_end|>\\n' }}{% endif -%}
{%- for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] | default('', true) + '<|im_end|>' + '\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}
""",
    "*thinking": """{%- set enable_thinking = enable_thinking if enable_thinking is defined else true %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- set reasoning = '' %}
    {%- if message.reasoning_content is defined and message.reasoning_content is not none %}
        {%- set reasoning = message.reasoning_content %}
    {%- elif '</think>' in content %}
        {%- set reasoning = ((content.split('</think>')|first).rstrip('\\n').split('<think>')|last).lstrip('\\n') %}
        {%- set content = (content.split('</think>')|last).lstrip('\\n') %}
    {%- endif %}
    {{- '<|' ~ message.role ~ '|>' ~ content -}}
    {%- if reasoning and loop.last %}{{ '[[' + reasoning.strip() + ']]' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|assistant|>\\n' }}
    {%- if not enable_thinking %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}
""",
    "*tool_calls": """{%- macro render_call(call) -%}
    {%- if call.function %}{% set call = call.function %}{% endif -%}
    <tool_call>{"name": "{{ call.name }}", "arguments": {{ call.arguments if call.arguments is string else call.arguments | tojson }}}</tool_call>
{%- endmacro %}
{%- if tools %}
<tools>
{%- for tool in tools %}
{{ tool | tojson(indent=4) }}
{%- endfor %}
</tools>
{%- endif %}
{%- for m in messages %}
{%- if m.role == 'tool' %}
    {%- if loop.index0 == 0 or messages[loop.index0 - 1].role != 'tool' %}<|user|>{% endif %}
<tool_response>
{{ m.content }}
</tool_response>
    {%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}<|end|>{% endif %}
{%- else %}
<|{{ m.role }}|>{{ m.content or '' }}
    {%- for call in m.tool_calls or [] %}
{{ render_call(call) }}
    {%- endfor %}
<|end|>
{%- endif %}
{%- endfor %}
{% if add_generation_prompt %}<|assistant|>{% endif %}""",
    "*alternation": """{%- set ns = namespace(index=0, system=none) -%}
{%- for m in messages if m.role != 'tool' -%}
    {%- if m.role == 'system' -%}{%- set ns.system = m.content | trim -%}
    {%- else -%}
        {%- if (m.role == 'user') != (ns.index % 2 == 0) and not m.tool_calls -%}
            {{- raise_exception('After the optional system message, conversation roles must alternate: ' ~ ns.index) -}}
        {%- endif -%}
        {%- set ns.index = ns.index + 1 -%}
        {{- ('[INST] ' ~ (ns.system ~ '\\n\\n' if ns.system and ns.index == 1 else '') ~ m.content ~ ' [/INST]') if m.role == 'user' else (' ' ~ m.content ~ eos_token) -}}
    {%- endif -%}
{%- endfor -%}
""",
    "*date_and_system": """{%- if not date_string is defined %}
    {%- if strftime_now is defined %}{%- set date_string = strftime_now("%d %b %Y") %}{% endif %}
{%- endif %}
{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{{- "Year has " ~ date_string | length ~ " characters\\n" }}
{%- if tools is not none and tools %}{{ "Environment: ipython\\n" }}{{ "Tools: " + tools | map(attribute='function') | map(attribute='name') | join(", ") + "\\n" }}{% endif %}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}{{ raise_exception("only single tool-calls at once!") }}{% endif %}
        {%- set call = message.tool_calls[0].function %}
        {{- '{"name": "' + call.name + '", "parameters": ' }}{{ call.arguments | tojson }}{{ "}" }}
    {%- elif message.role == "tool" %}
        {%- if message.content is mapping or message.content is iterable %}{{ message.content | tojson }}{% else %}{{ message.content }}{% endif %}
    {%- endif %}
{%- endfor %}
""",
    "*deepseek_like": """{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}{% set ns = namespace(is_first=false, is_tool=false, is_output_first=true, system_prompt='', is_first_sp=true, is_last_user=false) %}{%- for message in messages %}{%- if message['role'] == 'system' %}{%- if ns.is_first_sp %}{% set ns.system_prompt = ns.system_prompt + message['content'] %}{% set ns.is_first_sp = false %}{%- else %}{% set ns.system_prompt = ns.system_prompt + '\\n\\n' + message['content'] %}{%- endif %}{%- endif %}{%- endfor %}{{ bos_token }}{{ ns.system_prompt }}{%- for message in messages %}{%- if message['role'] == 'user' %}{%- set ns.is_tool = false -%}{%- set ns.is_first = false -%}{%- set ns.is_last_user = true -%}{{'<U>' + message['content'] + '<A>'}}{%- endif %}{%- if message['role'] == 'assistant' and message['tool_calls'] is defined and message['tool_calls'] is not none %}{%- set ns.is_last_user = false -%}{%- for tool in message['tool_calls'] %}{%- if not ns.is_first %}{{'<calls>' + tool['type'] + ':' + tool['function']['name'] + '\\n' + (tool['function']['arguments'] | tojson)}}{%- set ns.is_first = true -%}{%- else %}{{'\\n' + tool['function']['name']}}{%- endif %}{%- endfor %}{{'</calls>'}}{%- endif %}{%- if message['role'] == 'assistant' and not message['tool_calls'] %}{% set content = message['content'] %}{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}{{content + eos_token}}{%- endif %}{%- if message['role'] == 'tool' %}{%- set ns.is_tool = true -%}{{'<out>' + message['content'] + '</out>'}}{%- endif %}{%- endfor -%}{% if ns.is_tool %}{{'</outs>'}}{% endif %}{% if add_generation_prompt and not ns.is_tool %}{{'<A>'}}{% endif %}""",
    "*content_parts": """{%- for message in messages -%}
{{- '<start_of_turn>' + ('model' if message.role == 'assistant' else message.role) + '\\n' -}}
{%- if message.content is string -%}{{ message.content | trim }}
{%- elif message.content is iterable -%}
    {%- for item in message.content -%}
        {%- if item.type == 'image' -%}<image>{%- elif item.type == 'text' -%}{{ item.text | trim }}{%- endif -%}
    {%- endfor -%}
{%- elif message.content is none -%}-
{%- else -%}{{ raise_exception("Invalid content type") }}
{%- endif -%}
{{ '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\\n' }}{%- endif -%}
""",
    "*generation_tag": """{% for message in messages %}
{% if message.role == 'assistant' %}<|a|>{% generation %}{{ message.content }}{{ eos_token }}{% endgeneration %}

{% else %}<|{{ message.role[0] }}|>{{ message.content }}
{% endif %}
{% endfor %}""",
    "*documents": """{% for document in documents | default([]) -%}
Document: {{ loop.index0 }}
{% for key, value in document.items() %}{% if key != 'id' %}{{ key | capitalize }}: {{ value }}
{% endif %}{% endfor %}
{% endfor %}{{ messages[-1].content if messages else '' }}{{ messages | map(attribute='role') | unique | join('+') }}""",
    "*typescript_tools": """{%- macro ts_type(p) -%}
{%- if p.enum -%}{{ p.enum | map('tojson') | join(' | ') }}
{%- elif p.type == 'array' -%}{{ ts_type(p['items']) }}[]
{%- elif p.type == 'integer' or p.type == 'number' -%}number
{%- elif p.type == 'object' -%}{ {%- for k, v in p.properties.items() %} {{ k }}{{ '' if k in (p.required or []) else '?' }}: {{ ts_type(v) }}{{ ',' if not loop.last }}{% endfor %} }
{%- else -%}{{ p.type }}
{%- endif -%}
{%- endmacro -%}
{%- for tool in tools or [] %}
// {{ tool.function.description | replace('\\n', ' ') }}
type {{ tool.function.name }} = (_: {{ ts_type(tool.function.parameters) }}) => any;
{%- endfor %}
{{ messages | length }} messages""",
    "*last_user_index": """{%- set ns = namespace(last=-1) -%}
{%- for m in messages -%}{%- if m.role == 'user' -%}{%- set ns.last = loop.index0 -%}{%- endif -%}{%- endfor -%}
{%- for m in messages[:ns.last] -%}({{ m.role | upper }}){%- endfor -%}
{{- messages[ns.last].content if ns.last >= 0 else 'none' -}}
{%- for m in messages[ns.last + 1:] | reverse -%}[{{ m.role }}]{%- endfor -%}""",
    "*rejections": """{% if messages | selectattr('role', 'equalto', 'system') | list | length > 1 %}{{ raise_exception('one system message at most') }}{% endif %}
{% if messages and messages[-1].role == 'system' %}{{ raise_exception("the last message can't be the system's") }}{% endif %}
{% for m in messages | rejectattr('role', 'equalto', 'system') %}{{ m.role }}: {{ (m.content or 'null')[:12] }}{{ '...' if (m.content or '') | length > 12 }}
{% endfor %}""",
    "string_methods": """{{ 'a,b;c'.replace(';', ',').split(',') | join('|') }} {{ '-'.join(['x', 'y']) }} {{ 'hello'.find('l') }} {{ 'hello'.find('z') }} {{ 'hello'.rfind('l') }} {{ 'hello'.index('e') }} {{ 'banana'.count('an') }}
{{ 'a b c'.rsplit(' ', 1) }} {{ 'one\\ntwo\\r\\nthree'.splitlines() }} {{ 'prefix-x'.removeprefix('prefix-') }} {{ 'x.md'.removesuffix('.md') }}
{{ '123'.isdigit() }}{{ 'a1'.isdigit() }}{{ 'abc'.isalpha() }}{{ 'a1'.isalnum() }}{{ ' '.isspace() }}{{ 'AB'.isupper() }}{{ 'ab'.islower() }}{{ ''.isdigit() }}
{{ '7'.zfill(3) }} {{ '-7'.zfill(4) }} {{ 'x'.ljust(3, '.') }}| {{ 'x'.rjust(3) }}| {{ 'x'.center(4, '*') }} {{ 'k=v=w'.partition('=') | list }} {{ 'k=v=w'.rpartition('=') | last }} {{ 'aBc'.swapcase() }}
{{ 'x{}y{}'.format(1, 'two') }} {{ '{0}-{1}-{0}'.format('a', 'b') }} {{ '{name}!'.format(name='n') }} {{ '{{}}'.format() }} {{ '%s is %d (%r) %%' % ('a', 3, 'q') }} {{ '%.2f' % 1.5 }} {{ '%s' % none }}
{{ 'abcabc'.replace('b', 'X', 1) }} {{ 'x'.startswith(('a', 'x')) }} {{ 'naïve CAFÉ'.title() }} {{ 'ǆ'.upper() }} {{ "it's".title() }} {{ 'a-b'.strip('ab') }} {{ 'abc'[::-1].upper() }} {{ ['b', 'a'].index('a') }} {{ [1, 2, 1].count(1) }}
""",
    "list_filters": """{{ [3, 1, 2] | sort }} {{ [3, 1, 2] | sort(reverse=true) }} {{ ['b', 'A', 'c'] | sort }} {{ ['b', 'A', 'c'] | sort(case_sensitive=true) }} {{ messages | sort(attribute='role') | map(attribute='role') | list }}
{{ {'b': 1, 'a': 2} | dictsort | map('join', ':') | list }} {{ {'b': 1, 'a': 2} | dictsort(by='value') | map('first') | join }} {{ {'b': 1, 'a': 2} | dictsort(reverse=true) | map('last') | join }} {{ [1, 2, 1, 3] | unique | list }} {{ ['a', 'A'] | unique | list }} {{ [1, 2.5] | sum }} {{ tools | sum(attribute='n', start=10) if false else 10 }}
{{ [3, 1] | min }} {{ [3, 1] | max }} {{ ['b', 'A'] | min }} {{ 'one two  three' | wordcount }} {{ 2.567 | round(2) }} {{ 2.5 | round }} {{ 2.1 | round(0, 'ceil') }} {{ 7 | round }} {{ [1, 2, 3, 4, 5] | batch(2) | list }} {{ [1, 2, 3] | batch(2, 'x') | list }}
{{ 'a\\nb\\n\\nc' | indent }}|{{ 'a\\nb' | indent(2, true) }}|{{ 'a\\n\\nb' | indent(2, blank=true) }}|{{ '<a href="x">\\'&' | e }}|{{ 'x' | center(5) }}|{{ [0, 1, none, 'a', ''] | select | list }}|{{ [0, 1, ''] | reject | list }}|{{ [1, 2, 3] | select('gt', 1) | list }}|{{ [1, 2, 3] | reject('le', 2) | list }}|{{ [1, 2, 3, 4] | select('even') | map('string') | join }}
{{ [[1, 2], [3]] | map('length') | list }} {{ ['x'] | map('replace', 'x', 'y') | list }} {{ messages | map(attribute='name', default='anon') | list | length }} {{ messages | selectattr('name', 'defined') | list }} {{ [{'a': {'b': 1}}] | map(attribute='a.b') | list }} {{ [1] | first }}{{ 'abc' | last }} {{ {'a': 1} | items | map('join') | list }} {{ {'a': 1} | list }} {{ {'a': 1, 'b': 2} | length }} {{ [1, 'a', none] | string }} {{ '%s-%s' | format('a', 1) }} {{ 'a b' | urlencode if false else '' }}
""",
    "more_tests": """{{ 'a' is lower }}{{ 'A' is upper }}{{ 'aB' is lower }}{{ 1 is sameas 1 }}{{ none is sameas none }}{{ 2 is gt 1 }}{{ 2 is ge 2 }}{{ 1 is lt 1 }}{{ 1 is le 1 }}{{ 1 is ne 2 }}{{ 3 is greaterthan 2 }}{{ 1 is lessthan 2 }}
{{ range is callable }}{{ 'x' is callable }}{{ 1 is not none }}{{ missing is none }}{{ none is defined }}{{ 'a' in ['a'] and 'b' not in 'a' }}{{ [] is sequence }}{{ {} is sequence }}{{ 1 is float }}{{ 1.0 is float }}{{ true is integer }}{{ false is false }}{{ 0 is false }}{{ 'x' is filter }}{{ 'upper' is filter }}{{ 'odd' is test }}
""",
    "json_styles": """{{ {'b': [1, {'c': none}], 'a': 'é\\u2028<>&\\''} | tojson }} {{ {'b': 1, 'a': 2} | tojson(sort_keys=true) }} {{ 'é😀' | tojson(ensure_ascii=true) }} {{ {'a': [1, 2]} | tojson(separators=(',', ':')) }}
{{ {'a': [], 'b': {}, 'c': [1]} | tojson(indent=2) }} {{ [1.0, 1e22, 0.1, 1e-7, 123456789012345678] | tojson }} {{ "\\t\\"\\\\\\u0007" | tojson }} {{ true | tojson }} {{ tools[0].function.parameters | tojson(indent=1) }} {{ {'z': {'y': 1, 'x': 2}} | tojson(indent=2, sort_keys=true) }}
""",
    "loop_extras": """{% for i in range(3) %}{{ loop.cycle('a', 'b') }}{{ loop.depth }}{{ loop.depth0 }}{{ loop.revindex0 }}{% for j in range(2) %}{{ loop.depth }}{% endfor %}{% endfor %}
{% for x in [1, 1, 2, 2, 1] %}{% if loop.changed(x) %}<{{ x }}>{% endif %}{% endfor %}
{% for k, v in {'a': 1, 'b': 2}.items() %}{{ k }}={{ v }}{% if not loop.last %}&{% endif %}{% endfor %} {% for k in {'a': 1}.keys() %}{{ k }}{% endfor %}{% for v in {'a': 1}.values() %}{{ v }}{% endfor %}
{% for row in [[1, [2, 3]], [4, [5, 6]]] %}{% set a, b = row %}{{ a }}{{ b[1] }};{% endfor %}{% for i in range(10, 0, -4) %}{{ i }},{% endfor %}{% for c in 'ab' | list %}{{ loop.index }}{{ c }}{% endfor %}
{% for i in [1, 2, 3, 4, 5, 6] if i is even %}{{ i }}{{ loop.length }}{% if loop.index == 2 %}{% break %}{% endif %}{% endfor %}
""",
    "scopes": """{% set x = 1 %}{% if true %}{% set x = 2 %}{% endif %}{{ x }}{% for i in [1] %}{% set x = 3 %}{% set y = 4 %}{% endfor %}{{ x }}{{ y is defined }}
{% macro m(a, b=2) %}{{ a }}{{ b }}{{ x }}{% endmacro %}{{ m(1) }} {{ m(1, b=5) }} {{ m(b=1, a=0) }}
{% set ns = namespace(a=1, l=[]) %}{% for i in range(3) %}{% set ns.a = ns.a + i %}{% set ns.l = ns.l + [i] %}{% endfor %}{{ ns.a }}{{ ns.l }}
{% set content %}block {{ x }}{% endset %}{{ content | upper }}{% with z = 5, w = 6 %}{{ z + w }}{% endwith %}{{ z is defined }}
{% set a, b = 1, 2 %}{{ a }}{{ b }} {% set t = (1, 'x') %}{{ t[1] }} {{ dict(a=1).a }} {{ [x, x + 1, 'z'] }}
""",
    "numbers": """{{ 10 // 3 }} {{ -10 // 3 }} {{ 10 % 3 }} {{ -10 % 3 }} {{ 10 / 4 }} {{ 10 / 5 }} {{ 2 ** 0.5 }} {{ 2 ** -1 }} {{ 1e3 }} {{ 1.5e-5 }} {{ 123456789.123 }} {{ 1e16 }} {{ 1e15 }} {{ 0.1 + 0.2 }} {{ 3.0 }} {{ 7.0 // 2 }} {{ 5.5 % 2 }} {{ true + 1 }} {{ 1 == true }} {{ '5' | int * 2 }} {{ '0x1f' | int(base=16) }} {{ 'abc' | int(-1) }} {{ '1e2' | float }} {{ 3.99 | int }} {{ -3.99 | int }}
{{ 1 < 2 < 3 }} {{ 1 < 3 < 2 }} {{ 'a' * 3 }} {{ [0] * 3 }} {{ ((1, 2) + (3,)) | list }} {{ not 0 }} {{ 1 and 'x' }} {{ '' or none }} {{ none == none }} {{ [1] == [1.0] }} {{ {'a': 1} == {'a': 1} }} {{ 'a' != 'b' }} {{ 5 if false }}|{{ (1 if true else 2) + 3 }}
""",
    "whitespace_control": """  {%- if true -%}  a  {%- endif -%}  b
{%- set x = 1 %}

c {{- x -}} d
  {% for i in [1, 2] -%}
    {{ i }}
  {%- endfor %}
e{#- comment -#}   f {# kept space #} g
	{% if x %}	tab{% endif %}
{{ "a\\\\n" }}{{ 'b\\n' }}
	{%+ if x %}plus{%+ endif %}  
end""",
    "raise_line": "line one\n{% for m in messages %}\n  {% if loop.index == 2 %}\n    {{ raise_exception('third line from here: ' ~ m.role) }}\n  {% endif %}\n{% endfor %}",
    "missing_call": "{{ messages[0].no_such_method() }}",
    "bad_index": "{{ messages[99].content }}",
    "unknown_filter": "{{ 'x' | no_such_filter }}",
    "immutable": "{% set l = [1] %}{{ l.append(2) }}",
    "undefined_attribute": "a\n{{ missing.field }}",
    "undefined_sum": "{{ 'a' + missing }}",
    # Corners that checkpoints' templates step into.
    "odd_macro": """{%- macro card(title, body='-', mark='!') -%}[{{ title }}|{{ body }}|{{ mark }}]{%- endmacro -%}
{{ card('a') }}{{ card('b', mark='?') }}{{ card(body='x', title='c') }}{{ card('d', 'e', 'f') }}
{%- macro outer(x) %}{{ card(x ~ x) }}{% endmacro %}{{ outer('h') }}""",
    "odd_set_block": """{% set head %}
  {{ messages[0].role | upper }}:
{% endset %}{{ head | trim }}|{{ head | length }}
{% set a, b = 1, [2] %}{{ a }}{{ b }}{% set (c, d) = ('x', 'y') %}{{ c ~ d }}""",
    "odd_loops": """{% for m in messages if m.role != 'system' %}{{ loop.index }}/{{ loop.length }}{{ loop.first }}{{ loop.last }}{{ loop.revindex0 }}{{ loop.previtem.role if loop.previtem is defined }}>{{ loop.nextitem.role if not loop.last }}{{ loop.cycle('a', 'b') }}{{ loop.changed(m.role) }}
{% else %}none{% endfor %}{% for x in [] %}{{ x }}{% else %}empty{% endfor %}{% for k, v in {'a': 1, 'b': [2]}.items() %}{{ k }}={{ v }};{% endfor %}{% for a, b in [(1, 2), [3, 4]] %}{{ a + b }}{% endfor %}{% for c in 'añ' %}<{{ c }}>{% endfor %}""",
    "odd_break": """{% for i in range(10) %}{% if i == 2 %}{% continue %}{% endif %}{% if i > 4 %}{% break %}{% endif %}{{ i }}{% endfor %}{% for i in range(6, 0, -2) %}{{ i }}{% endfor %}""",
    "odd_slices": """{{ messages[1:][0].role }}{{ messages[-2:] | length }}{{ messages[:-1][-1].role }}{{ [1, 2, 3, 4][::-1] }}{{ 'abcdef'[1:5:2] }}{{ 'abc'[-1] }}{{ (1, 2)[0] }}{{ [1, 2][5] is undefined }}{{ 'abc'[::-1] }}{{ messages[::2] | map(attribute='role') | list }}""",
    "odd_numbers": """{{ 7 // 2 }} {{ -7 // 2 }} {{ -7 % 3 }} {{ 7 / 2 }} {{ 2 ** 10 }} {{ 2 ** -1 }} {{ 1e3 }} {{ 1.0 }} {{ 0.1 + 0.2 }} {{ 1e16 }} {{ 1e-5 }} {{ 3 | float }} {{ '4' | int + 1 }} {{ 'x' | int(7) }} {{ '2.9' | int }} {{ 2.5 | round }} {{ 3.14159 | round(2) }} {{ 7 | abs }} {{ -7 | abs }} {{ true + 1 }} {{ 1 == 1.0 }} {{ 1 < 2 < 3 }} {{ 3 > 2 > 2 }} {{ 10 | string | length }}""",
    "odd_strings": """{{ 'a' 'b' }} {{ 'x' * 3 }} {{ 'A\\x42\\u00e9\\t|' }} {{ "it's" }} {{ 'a,b,,c'.split(',') }} {{ ' a  b '.split() }} {{ 'a-b-c'.rsplit('-', 1) }} {{ 'a-b-c'.split('-', 1) }} {{ 'xxaxx'.strip('x') }} {{ 'abc'.startswith(('x', 'a')) }} {{ 'abc'.endswith('bc') }} {{ 'aXbX'.replace('X', '-', 1) }} {{ 'hello world'.title() }} {{ 'hELLO'.capitalize() }} {{ 'abc'.find('c') }} {{ 'abab'.count('ab') }} {{ ', '.join(['a', 'b']) }} {{ 'ab' in 'cabd' }} {{ 'É'.lower() }} {{ 'ß'.upper() }} {{ 'a\\nb'.splitlines() }} {{ 'Ab'.swapcase() if false }} {{ '5'.isdigit() }} {{ 'abc' | reverse }} {{ 'a b c' | wordcount }} {{ 'x' | center(5) }}|{{ 'pre-fix'.removeprefix('pre-') }} {{ '7'.zfill(3) if false }}""",
    "odd_filters": """{{ [3, 1, 2] | sort }} {{ [3, 1, 2] | sort(reverse=true) }} {{ messages | sort(attribute='role') | map(attribute='role') | join(',') }} {{ ['b', 'A'] | sort }} {{ [1, 1, 2] | unique | list }} {{ [1, 2, 3] | sum }} {{ [{'n': 1}, {'n': 4}] | sum(attribute='n') }} {{ [3, 9, 4] | max }} {{ [3, 9, 4] | min }} {{ range(5) | batch(2) | list }} {{ [1, 2, 3] | select('odd') | list }} {{ [1, none, 0] | select | list }} {{ [1, none, 0] | reject('none') | list }} {{ messages | rejectattr('role', 'equalto', 'user') | map(attribute='role') | list }} {{ messages | selectattr('role', 'in', ['user', 'system']) | list | length }} {{ {'b': 1, 'a': 2} | dictsort | map('first') | list }} {{ 'x' | default('d') }}{{ nothing | default('d') }}{{ '' | default('d', true) }}{{ none | d('e') }} {{ 'a b' | replace(' ', '_') }} {{ '  x ' | trim }}| {{ 'xxyxx' | trim('x') }} {{ 'line1\\nline2' | indent(2) }} {{ 'line1\\nline2' | indent(2, true) }} {{ ['a', 'b'] | join('-') }} {{ [1, [2, 3]] | string }} {{ 'Hi' | list }} {{ {'a': {'b': 1}} | tojson(indent=2) }} {{ [1, 'é', none, true, 1.5] | tojson }} {{ 'a' | first }}{{ [1, 2] | last }} {{ 'A' | lower }}{{ 'a' | upper }} {{ [[1, 2], [3]] | map('first') | list }} {{ ['1', '2'] | map('int') | sum }} {{ [' a'] | map('trim') | list }}""",
    "odd_tests": """{{ 1 is odd }}{{ 2 is even }}{{ 9 is divisibleby(3) }}{{ none is none }}{{ x is undefined }}{{ 'a' is string }}{{ 1 is number }}{{ true is number }}{{ 1 is integer }}{{ 1.5 is float }}{{ true is boolean }}{{ {} is mapping }}{{ [] is iterable }}{{ 'a' is iterable }}{{ [] is sequence }}{{ 'A' is upper }}{{ 'a' is lower }}{{ 1 is sameas(1) }}{{ true is true }}{{ 1 is true }}{{ false is false }}{{ 1 is ne(2) }}{{ 3 is gt(2) }}{{ 3 is le 2 }}{{ raise_exception is callable }}{{ 'trim' is filter }}{{ 'odd' is test }}{{ 'a' is not in ['b'] }}{{ not (1 is odd) }}{{ [1] is eq([1]) }}""",
    "odd_logic": """{{ none or 'x' }}{{ '' and 'y' }}{{ not '' }}{{ 1 if true }}{{ 1 if false }}|{{ 'a' if messages else 'b' }}{{ ('a' if false else 'b') ~ 1 ~ none ~ true }}{{ 'a' == 'a' and 1 != 2 or false }}{{ {'a': 1}['a'] }}{{ {'a': 1}.a }}{{ {'a': 1}.get('b', 'c') }}{{ {'a': none}.get('a') is none }}{{ {'items': 1}['items'] }}{{ {'a': 1, 'a': 2} }}{{ 'a' in {'a': 1} }}{{ {'x': [1, [2]], 'y': none} }}{{ [] or {} }}{{ messages[0]['nope'] is defined }}{{ dict(a=1, b='c') }}{{ [1, 2] + [3] }}{{ {'a': 1} == dict(a=1) }}""",
    "odd_space": """a
  {%- if true -%}
  b
  {%- endif %}  c
{#- gone -#}
   d {{- 'e' -}} f
  {%+ if true %}g{% endif +%}

{{ 'h'
}}  
\t{% set x = 1 %}
i
""",
    "odd_scope": """{% set x = 1 %}{% for i in [1, 2] %}{% set x = i * 10 %}{{ x }},{% endfor %}{{ x }};{% if true %}{% set x = 5 %}{% endif %}{{ x }};{% set ns = namespace(x=0) %}{% for i in [1, 2] %}{% set ns.x = ns.x + i %}{% endfor %}{{ ns.x }};{% with x = 7, y = 8 %}{{ x + y }}{% endwith %}{{ x }};{% macro m() %}{{ x }}{% endmacro %}{{ m() }}{% for x in 'ab' %}{{ x }}{% endfor %}{{ x }}""",
    "odd_undefined": """{{ missing }}|{{ missing | default('d') }}|{{ messages[9] }}|{{ messages[0].missing }}|{{ missing is defined }}|{{ (missing or 'x') }}|{% if missing %}y{% else %}n{% endif %}|{{ missing | length if missing }}|{{ [missing] | length }}|{{ missing ~ 'a' }}|{% for m in missing %}z{% endfor %}|{{ missing == missing2 }}|{{ missing | upper }}|{{ missing in [1] }}""",
    "odd_undefined_field": "{{ missing.field }}",
    "odd_no_next": "{% for m in messages %}{{ loop.nextitem.role }}{% endfor %}",
    "odd_none_field": "{{ none.field }}|{{ none.field is defined }}",
    "odd_call_none": "{{ missing() }}",
    "odd_add": "{{ 'a' + 1 }}",
    "odd_mutate": "{{ messages.append(1) }}",
    "odd_underscore": "{{ messages.__class__ }}",
    "odd_strftime": "{{ strftime_now('%Y-%m-%d') | length }}{{ strftime_now('%d %b') | length }}{{ strftime_now('%H:%M:%S') | length }}{{ strftime_now('%%') }}",
    "odd_dates": "{% if date_string is not defined %}{% if strftime_now is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% else %}{% set date_string = '26 Jul 2024' %}{% endif %}{% endif %}{{ date_string | length }}",
}


CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Bern", "days": 2}}}
NESTED = {
    "type": "function",
    "function": {
        "name": "book",
        "description": "Books\na seat",
        "parameters": {
            "type": "object",
            "properties": {
                "class": {"type": "string", "enum": ["first", "second"]},
                "seats": {"type": "array", "items": {"type": "integer"}},
                "who": {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]},
            },
            "required": ["class", "seats"],
        },
    },
}
# Conversations that templates marked with * are rendered with.
INPUTS = {
    "plain": {"messages": [{"role": "user", "content": " Hello\n"}]},
    "turns": {"messages": CHAT[1:], "enable_thinking": False},
    "system": {"messages": CHAT},
    "no_prompt": {"messages": CHAT[:3], "add_generation_prompt": False},
    "tools": {
        "messages": [
            {"role": "user", "content": "Weather?"},
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "content": "{\"sky\": \"clear\"}"},
            {"role": "assistant", "content": "Clear.", "reasoning_content": "\nI asked.\n"},
        ],
        "tools": TOOLS + [NESTED],
    },
    "documents": {
        "messages": [{"role": "user", "content": [{"type": "text", "text": " what? "}, {"type": "image"}]}],
        "documents": [{"id": 1, "title": "A", "text": "Ü"}, {"title": "B", "text": ""}],
        "tools": None,
    },
    "two_systems": {"messages": [CHAT[0], CHAT[1], {"role": "system", "content": "again"}]},
    "empty": {"messages": []},
}


def run(name, template, context):
    case = {"name": name, "template": template, "context": context}
    try:
        case["expected"] = ENV.from_string(template).render(**context)
    except (TemplateError, TypeError, ValueError, AttributeError) as error:
        case["error"] = str(error)
    return case


def main():
    cases = []
    for name, template in CASES.items():
        if not name.startswith("*"):
            cases.append(run(name, template, dict(BASE, tools=TOOLS)))
            continue
        for which, more in INPUTS.items():
            cases.append(run(name[1:] + "/" + which, template, dict(BASE, **more)))
    print("[", ",\n".join(json.dumps(c, ensure_ascii=False) for c in cases), "]", sep="\n")


if __name__ == "__main__":
    main()
