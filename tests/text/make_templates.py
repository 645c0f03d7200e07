"""Writes templates.json: chat templates that use what published ones use, and what transformers
makes of them.

    python tests/text/make_templates.py

Each template is a few lines of its own around constructs of published templates: those of Qwen, Llama, Gemma, SmolVLM, Mistral,
Phi and DeepSeek.
"""

import datetime
import json
from pathlib import Path

import transformers
from transformers.utils import chat_template_utils

NOW = datetime.datetime(2026, 7, 5, 9, 3, 7)
TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}


class Frozen(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return NOW


chat_template_utils.datetime = Frozen

PLAIN = [
    {"role": "system", "content": "  Be brief. "},
    {"role": "user", "content": "What is in <b>it</b>?\n"},
    {"role": "assistant", "content": "<think>a box</think>\n\nA 'box' & a \"ball\"."},
    {"role": "user", "content": "Größe? 大きさ 🙂"},
]
PARTS = [
    {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}, {"type": "image"}]},
    {"role": "assistant", "content": [{"type": "text", "text": "A box."}]},
    {"role": "user", "content": [{"type": "text", "text": "And now?"}]},
]

TEMPLATES = {
    "trimmed blocks": ("""
        {%- for message in messages %}
            {% if loop.first and message.role == 'system' %}
                {{- bos_token + 'S:' + message.content | trim + '\\n' }}
            {% elif not loop.last %}
    {{ message['role'] | upper }}: {{ message['content'] }}
            {% else %}
                {{- "last: " ~ message.content -}}
            {% endif %}
        {%- endfor %}
        {%- if add_generation_prompt %}{{ '<answer>' }}{% endif %}
    """, PLAIN),
    "methods of strings": ("""
        {%- for m in messages %}
            {%- set c = m.content %}
            {%- if '</think>' in c %}{% set c = c.split('</think>')[-1].lstrip('\\n') %}{% endif %}
            {{- c.strip() }}|{{ c.startswith('What') }}|{{ c.endswith('?') }}|{{ c.replace('box', 'bag') }}|{{ c.upper() }}|{{ c.find('o') }}
            {{- c.rstrip('?\\n') }}|{{ m.role.title() }}|{{ c[:4] }}|{{ c[-3:] }}|{{ c | length }}|{{ c.count('a') }}#
        {%- endfor %}""", PLAIN),
    "slices and reversals": ("""
        {%- for m in messages[::-1] %}{{ loop.index0 }}{{ m.role[0] }}{% endfor %}
        {{- messages[1:] | length }}{{ messages[-1].role }}{{ messages[:-1] | map(attribute='role') | join(',') }}
        {{- messages | selectattr('role', 'equalto', 'user') | list | length }}
        {{- messages | rejectattr('role', 'equalto', 'user') | map(attribute='role') | unique | join('+') }}""", PLAIN),
    "namespaces": ("""
        {%- set ns = namespace(images=0, seen=false, last=messages | length - 1) %}
        {%- for m in messages %}
            {%- if m.content is string %}{{ m.content }}
            {%- else %}
                {%- for part in m.content %}
                    {%- if part.type == 'image' or 'image' in part %}
                        {%- set ns.images = ns.images + 1 %}Picture {{ ns.images }}: <image>
                    {%- elif 'text' in part %}{{ part.text }}
                    {%- endif %}
                {%- endfor %}
            {%- endif %}
            {%- if m.role == 'assistant' %}{% set ns.seen = true %}{{ eos_token }}{% endif %}
        {%- endfor %}
        {{- ns.seen }}{{ ns.last }}""", PARTS),
    "macros": ("""
        {%- macro render(content, count=true) -%}
            {%- if content is string -%}{{ content }}
            {%- elif content is iterable and content is not mapping -%}
                {%- for item in content -%}
                    {%- if item['type'] == 'image' -%}<img{% if count %}{{ loop.index }}{% endif %}>
                    {%- elif item.text is defined -%}{{ item.text }}
                    {%- else -%}{{ raise_exception('Unexpected item') }}{%- endif -%}
                {%- endfor -%}
            {%- elif content is none or content is undefined -%}
            {%- endif -%}
        {%- endmacro -%}
        {%- for m in messages -%}<{{ m.role }}>{{ render(m.content) }}{{ render(m.content, count=false) }}
        {%- endfor -%}""", PARTS),
    "what is not given": ("""
        {%- if tools is not none %}tools{% endif %}
        {%- if documents %}documents{% endif %}
        {%- if tools is defined %}defined{% endif %}
        {%- if enable_thinking is defined and enable_thinking is false %}off{% endif %}
        {%- if not date_string is defined %}{% set date_string = '26 Jul 2024' %}{% endif %}
        {{- date_string }}{{ custom_system | default('none') }}{{ messages[0].name | default('-', true) }}
        {%- set tools = tools or [] %}{{ tools | length }}{{ pad_token }}{{ unk_token is defined }}""", PLAIN),
    "the time": ("""
        {%- if strftime_now is defined %}{{ strftime_now('%d %b %Y') }}{% endif %}
        {{- strftime_now('|%Y-%m-%d|%A, %B %d|%H:%M:%S|%y %j %p %I|%%') }}""", PLAIN),
    "refuses": ("""
        {%- for m in messages %}
            {%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}
                {{- raise_exception('Roles must alternate user/assistant/user/assistant/...') }}
            {%- endif %}
        {%- endfor %}""", PLAIN),
    "marks for training": ("""
        {%- for m in messages %}
            {%- if m.role == 'assistant' %}{% generation %}{{ m.content }}{{ eos_token }}{% endgeneration %}
            {%- else %}[{{ m.content }}]{% endif %}
        {%- endfor %}""", PLAIN),
    "loops": ("""
        {%- for m in messages %}
            {%- if m.role == 'system' %}{% continue %}{% endif %}
            {%- if loop.previtem is defined and loop.previtem.role == 'system' %}after system;{% endif %}
            {%- if loop.nextitem is defined %}before {{ loop.nextitem.role }};{% endif %}
            {{- loop.cycle('odd', 'even') }}{{ loop.revindex }}{{ loop.length }}
            {%- if loop.index == 3 %}{% break %}{% endif %}
        {%- else %}empty{% endfor %}
        {%- for k, v in messages[0].items() %}{{ k }}={{ v | trim }};{% endfor %}
        {%- for i in range(2, 0, -1) %}{{ i }}{% endfor %}""", PLAIN),
    "json": ("""
        {{- messages[2] | tojson }}{{ messages[3] | tojson(indent=4) }}
        {{- {'a': [1, 2.5, true, none], 'b': {}} | tojson }}{{ [] | tojson(indent=2) }}""", PLAIN),
    "values": ("""
        {{- 7 // 2 }} {{ 7 / 2 }} {{ 7 % 3 }} {{ 2 ** 5 }} {{ 1 == 1.0 }} {{ 'a' ~ 1 ~ none ~ true }} {{ [1, 'a'] }} {{ {'k': 'v'} }}
        {{- ('x' if false) }} {{ 'x' if messages else 'y' }} {{ not '' }} {{ 'b' in 'abc' }} {{ 3 | string + 'x' }} {{ '4' | int + 1 }}
        {{- 'a,b' .split(',') | join(' ') }} {{ "%s-%d" | format('a', 3) }} {{ 'abc' | first }}{{ 'abc' | last }} {{ [3, 1, 2] | sort | join }}
        {{- 'a b' | replace(' ', '_') | capitalize }} {{ 'x' * 3 }} {{ (1, 2)[1] }} {{ 'a' 'b' }}""", PLAIN),
    "filters in blocks": ("""
        {%- set text %}  {{ messages[0].content }}  {% endset %}
        {{- text | trim }}|
        {%- filter upper %}{{ messages[1].content }}{% endfilter %}
        {#- a comment -#}
        {%- raw %}{{ as it is }}{% endraw %}
        {{- messages[0].content | indent(2) }}{{ 'a\\nb' | indent(4, true) }}""", PLAIN),
}


def case(name, source, messages):
    entry = {"name": name, "source": source, "messages": messages}
    try:
        rendered, _ = chat_template_utils.render_jinja_template(
            conversations=[messages], chat_template=source, add_generation_prompt=True, **TOKENS)
        return entry | {"expected": rendered[0]}
    except Exception as error:  # What the template raises itself.
        return entry | {"error": str(error)}


cases = [case(name, source, messages) for name, (source, messages) in TEMPLATES.items()]
result = {"transformers": transformers.__version__, "now": NOW.isoformat(), "tokens": TOKENS, "cases": cases}
Path(__file__).with_name("templates.json").write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
