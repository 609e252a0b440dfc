"""Chat templates: the text is that of transformers, and no template loops or grows without end."""

import time

import pytest

from xrec_jax.core.errors import UserError
from xrec_jax.llm.io import chat_template
from xrec_jax.llm.io.chat_template import ChatTemplate

CHAT = [
    {"role": "system", "content": "be  brief\n"},
    {"role": "user", "content": "\nwhy <b>'this'</b>? \U0001f642 1,234"},
    {"role": "assistant", "content": "near."},
    {"role": "user", "content": " and then"},
]
# In the manner of published ones: what they use of Jinja is used here.
TEMPLATES = {
    "llama 2": (
        "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
        "{% set system = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}"
        "{% set system = false %}{% endif %}{% for m in loop_messages %}"
        "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('roles must alternate') }}{% endif %}"
        "{% if loop.index0 == 0 and system != false %}"
        "{% set content = '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' + m['content'] %}"
        "{% else %}{% set content = m['content'] %}{% endif %}"
        "{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
        "{% elif m['role'] == 'assistant' %}{{ ' ' + content.strip() + ' ' + eos_token }}"
        "{% endif %}{% endfor %}"
    ),
    "llama 3": (
        "{%- set ns = namespace(n=0, text='') -%}\n{{- bos_token }}\n"
        "{%- if tools is defined and tools %}{{- tools | tojson }}{%- endif %}\n"
        "{%- for message in messages %}\n"
        "    {%- set ns.n = ns.n + message.content | length %}\n"
        "    {{- '<|start|>' + message['role'] + '<|end|>\\n\\n' + message['content'] | trim }}\n"
        "    {%- if not loop.last %}{{ loop.nextitem.role }}{% endif %}\n"
        "{%- endfor %}\n{{ ns.n ~ '/' ~ messages|length }}"
        "{%- if add_generation_prompt %}{{- '<|start|>assistant<|end|>\\n\\n' }}{%- endif %}"
    ),
    "macros and filters": (
        "{% macro block(m, mark='*') %}{{ mark * 3 }}{{ m.role | upper }}: {{ m.content }}"
        "{% endmacro %}{% for m in messages if m.role != 'system' %}{{ block(m) }}\n"
        "{% if loop.index > 2 %}{% break %}{% endif %}{% else %}nothing{% endfor %}"
        "{{ messages | map(attribute='role') | unique | join(', ') }} {{ messages[1] | tojson }} "
        "{{ messages | selectattr('role', 'equalto', 'user') | list | length }}"
        "{{ '%s-%03d' | format('a', 7) }}{{ '%.2f' % 1.5 }}{{ 'x={}'.format(3) }}"
        "{{ messages[0].content.split(' ') | tojson(indent=2) }}{{ [1, 2] + [3] }}{{ 2 ** 10 }}"
        "{% generation %}{{ messages[-1].content.replace('and', '&') }}{% endgeneration %}"
        "{{ none }}{{ missing }}{{ 1700000000 | string }}{{ loop is defined }}"
    ),
    "blocks": "{% set text %}{% for m in messages %}  {{ m.content }}\n{% endfor %}{% endset %}"
    "{{ text | indent(4) }}{% filter upper %}{{ text }}{% endfilter %}{# gone #}\n",
}


class Template:
    """As much of a tokenizer as renders a template."""

    special_tokens_map = {"bos_token": "<s>", "eos_token": "</s>"}  # noqa: RUF012

    def __init__(self, text):
        self.text = text

    def get_chat_template(self):
        return self.text


def render(text, messages=CHAT, **options):
    return ChatTemplate(Template(text), where="dir").render(messages, **options)


@pytest.mark.parametrize("prompt", [False, True])
@pytest.mark.parametrize("name", TEMPLATES)
def test_text_is_that_of_transformers(name, prompt):
    from transformers.utils.chat_template_utils import render_jinja_template

    wanted, _ = render_jinja_template(
        [CHAT],
        chat_template=TEMPLATES[name],
        add_generation_prompt=prompt,
        **Template.special_tokens_map,
    )
    assert render(TEMPLATES[name], prompt=prompt) == wanted[0]


LOOP = "{% for i in range(99999) %}"
GROW = (
    "{% set ns = namespace(x='ab') %}{% for i in range(60) %}"
    + "{% set ns.x = GROWN %}{% endfor %}{{ ns.x }}"
)
LONG = "{% set s = 'a' * 999999 %}"
WITHOUT_END = {
    "nested loops": LOOP * 3 + "x" + "{% endfor %}" * 3,
    "long texts": LOOP + "x" * 5000 + "{% endfor %}",
    "a block": LOOP + "{% set b %}" + LOOP + "{% endfor %}{% endset %}{% endfor %}",
    "product": "{{ 'a' * 99999999999 }}",
    "list": "{{ (99999999999 * [0]) | length }}",
    "power": "{{ 2 ** 999999 }}",
    "product of numbers": GROW.replace("'ab'", "99").replace("GROWN", "ns.x * ns.x"),
    "width": "{{ 'x' | center(10 ** 9) }}",
    "method": "{{ 'x'.ljust(999999999) }}",
    "bytes": "{{ (1).to_bytes(999999999, 'big') }}",
    "format": "{{ '%999999999d' % 1 }}",
    "star": "{{ '%*d' | format(999999999, 1) }}",
    "braces": "{{ '{:999999999}'.format(1) }}",
    "format of a date": "{{ strftime_now('%999999999d') }}",
    "sum": GROW.replace("GROWN", "ns.x + ns.x"),
    "joined": GROW.replace("GROWN", "ns.x ~ ns.x"),
    "list in lists": GROW.replace("GROWN", "[ns.x, ns.x]"),
    "object of objects": GROW.replace("GROWN", "{'a': ns.x, 'b': ns.x}") + "{{ ns.x | tojson }}",
    "replace": LONG + "{{ s.replace('a', s) }}",
    "replace, the filter": LONG + "{{ s | replace('', s) }}",
    "join": LONG + "{{ s.join(['x'] * 99999) }}",
    "join, the filter": LONG + "{{ ([s] * 99999) | join }}",
    "sum of lists": "{{ ([[0] * 999] * 99999) | sum(start=[]) | length }}",
    "indent": "{{ ('a\n' * 99999) | indent(99999) }}",
    "macros": (
        "{% macro f(n) %}{% if n %}{{ f(n - 1) ~ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}"
    ),
    "a macro for ever": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "long macro": (
        "{% macro f() %}" + "x" * 999 + "{% endmacro %}" + LOOP + "{% set y = f() %}{% endfor %}"
    ),
    "a loop in itself": "{% for x in [1, 2] recursive %}{{ loop([1, 2]) }}{% endfor %}",
    "long filters": LOOP + "{% set x = range(99999) | sum %}{% endfor %}",
    "copies": "{% set s = 'a' * 9999999 %}" + LOOP + "{% set t = s ~ 'b' %}{% endfor %}",
    "nested too deep": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "a template without end": "x" * 1_000_001,
}


@pytest.mark.parametrize("text", WITHOUT_END.values(), ids=WITHOUT_END.keys())
def test_what_would_not_end_is_refused_soon(text):
    start = time.monotonic()
    with pytest.raises(UserError, match=r"^dir: its chat template (asks for|fails: maximum rec)"):
        render(text)
    assert time.monotonic() - start < 10


def test_time_is_bounded_too(monkeypatch):
    monkeypatch.setattr(chat_template, "MOST_SECONDS", 0.0)
    with pytest.raises(UserError, match="more than 0 seconds"):
        render(TEMPLATES["llama 3"])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{% include '/etc/passwd' %}", "no loader"),
        ("{{ raise_exception('no\nrole') }}", "no role"),
        ("{{ messages[9].content }}", "no element 9"),
        ("{% for %}", "Expected an expression"),
        ("{{ 1 // 0 }}", "zero"),
    ],
)
def test_what_a_template_does_wrong_is_one_line(text, words):
    with pytest.raises(UserError, match=f"^dir: its chat template fails: .*{words}") as error:
        render(text)
    assert "\n" not in str(error.value)


def test_a_long_conversation_is_no_excess():
    messages = [dict(one, content="word " * 300) for one in CHAT[1:3]] * 500
    assert len(render(TEMPLATES["llama 2"], messages)) > 1_400_000
