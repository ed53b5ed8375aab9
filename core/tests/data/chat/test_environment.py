"""Our Jinja environment against transformers', and what a template must not reach."""

import datetime

import jinja2
import pytest
from apr_train.data.chat.environment import Template, TooMuchOutput
from transformers.utils.chat_template_utils import render_jinja_template

DATE = datetime.date(2026, 3, 4)
MESSAGES = [
    {"role": "system", "content": " Be <brief> & 'kind'. "},
    {"role": "user", "content": "1+1?\nä🙂"},
    {"role": "assistant", "content": "2", "tool_calls": [{"function": {"name": "f", "arguments": {"z": 1, "a": "<é>"}}}]},
    {"role": "assistant", "content": "3", "reasoning": "because"},
]
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"b": 1, "a": [True, None]}}}]
TEMPLATES = {
    "blocks are trimmed": "{% for m in messages %}\n    {% if m.role == 'user' %}\n  {{ m.content }}\n    {% endif %}\n{% endfor %}\n",  # noqa: E501
    "json": "{{ tools | tojson }}|{{ tools | tojson(indent=2) }}|{{ messages[2].tool_calls[0].function.arguments | tojson }}",
    "json sorted": "{{ tools | tojson(sort_keys=true, separators=(',', ':')) }}{{ 'ä' | tojson(ensure_ascii=True) }}",
    "loop controls": "{% for m in messages %}{% if loop.index == 2 %}{% continue %}{% endif %}{{ m.role }}{% if loop.index == 3 %}{% break %}{% endif %}{% endfor %}",  # noqa: E501
    "namespace": "{% set ns = namespace(n=0, self=1) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}{{ ns.self }}",  # noqa: E501
    "dict": "{{ dict(a=1) }}{{ dict.fromkeys([1, 2], 3) }}{{ {'a': 1}.items() | list }}",
    "strftime": "{{ strftime_now('%d %b %Y %H:%M') }}",
    "tokens": "{{ bos_token }}{{ eos_token }}{{ pad_token }}",
    "thoughts": "{% for m in messages %}{{ m.reasoning_content }}{{ m.thinking }}{% endfor %}",
    "generation": "{% for m in messages %}{{ m.role }}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}!{% endgeneration %}{% endif %}{% endfor %}",  # noqa: E501
    "generation with white space": "{%- for m in messages -%}\n {%- generation -%}\n {{ m.content }} \n{%- endgeneration -%} {{ m.role }}\n{%- endfor -%}",  # noqa: E501
    "prompt": "{{ add_generation_prompt }}{{ tools is none }}{{ documents is none }}",
    "macro": "{% macro f(x) %}<{{ x }}>{% endmacro %}{% for m in messages %}{{ f(m.content | trim) }}{% endfor %}",
}  # fmt: skip


def render(text, messages=MESSAGES, *, prompt=False, tools=None, most=100_000, **variables):
    return Template(text, variables, DATE).render({"messages": messages, "tools": tools}, prompt=prompt, most=most)


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("prompt", [False, True])
def test_template_writes_what_it_writes_in_transformers(kit, fixed_date, name, prompt):
    variables = {"bos_token": "<s>", "eos_token": "</s>"}
    texts, spans = render_jinja_template(
        [MESSAGES],
        TOOLS,
        chat_template=TEMPLATES[name],
        return_assistant_tokens_mask="generation" in name,
        add_generation_prompt=prompt,
        **variables,
    )
    assert kit.date == DATE.isoformat()
    ours = render(TEMPLATES[name], prompt=prompt, tools=TOOLS, **variables)
    assert ours[0] == texts[0]
    assert ours[1] == (spans[0] if "generation" in name else [])


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_with_marks_is_known_by_them(name):
    assert Template(TEMPLATES[name], {}, DATE).marked == ("generation" in name)


def test_word_generation_in_a_text_is_no_mark():
    assert not Template("{# {% generation %} #}{{ '{% generation %}' }}{{ add_generation_prompt }}", {}, DATE).marked


@pytest.mark.parametrize(
    "text",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(a=1) }}",
        "{% set ns = namespace() %}{% set ns._x = 1 %}",
        "{{ namespace(_x=1) }}",
        "{{ namespace.__init__.__globals__ }}",
        "{{ dict.__class__.__base__ }}",
        "{{ strftime_now.__self__.today() }}",
        "{% for i in range(1000000000) %}{% endfor %}",
    ],
)
def test_sandbox_holds(text):
    with pytest.raises((jinja2.exceptions.TemplateError, OverflowError)):
        render(text)


def test_nothing_of_python_is_reached_by_an_attribute():
    reached = ("strftime_now.__self__", "cycler.__init__", "raise_exception.__globals__", "'{0.__class__}'.format(messages)")
    for expression in reached:
        assert render(f"{{{{ {expression} }}}}")[0] == "", expression


def test_template_may_raise_with_its_own_words():
    with pytest.raises(jinja2.exceptions.TemplateError, match="roles must alternate"):
        render("{{ raise_exception('roles must alternate') }}")


def test_output_is_bounded():
    with pytest.raises(TooMuchOutput):
        render("{% for m in range(100) %}{{ 'x' * 100 }}{% endfor %}", most=9_999)
    assert len(render("{% for m in range(100) %}{{ 'x' * 100 }}{% endfor %}", most=10_000)[0]) == 10_000
