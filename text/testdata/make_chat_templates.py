#!/usr/bin/env python3
"""Renders the cases below with Jinja2, configured as transformers does, into chat_templates.json.

Run with jinja2 installed:  python3 make_chat_templates.py > chat_templates.json
"""
import json

from jinja2 import TemplateError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment


def raise_exception(message):
    raise TemplateError(message)


def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


ENV = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
ENV.filters["tojson"] = tojson
ENV.globals["raise_exception"] = raise_exception

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
    "undefined_attribute": "a\n{{ missing.field }}",
    "undefined_sum": "{{ 'a' + missing }}",
}


def main():
    cases = []
    for name, template in CASES.items():
        context = dict(BASE, tools=TOOLS)
        case = {"name": name, "template": template, "context": context}
        try:
            case["expected"] = ENV.from_string(template).render(**context)
        except TemplateError as error:
            case["error"] = str(error)
        cases.append(case)
    print(json.dumps(cases, ensure_ascii=False, indent=1))


if __name__ == "__main__":
    main()
