"""The child process: what it gives, and what a hostile template cannot do in it."""

import json
import sys
import threading
import time
from pathlib import Path

import pytest
from apr_train.data.chat import turns
from apr_train.data.chat.renderer import Renderer, TemplateFault
from apr_train.data.chat.template import read_template, template_of
from apr_train.data.chat.worker import Renderings
from apr_train.data.conversations import Conversation
from apr_train.errors import ConfigError, FormatError, TokenizerError

CHAT = Conversation(
    [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}, {"role": "user", "content": "Bye"}]
)
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="the memory of a process is bounded on Linux")


def only(chat, kit, text, **options):
    """What a template makes of one conversation."""
    with Renderer(kit.template_of(kit.ours(), text), **options) as renderer:
        renderer.require_turns()
        (rendering,) = renderer.render([chat], where=["chats.jsonl:7"])
    return rendering


def fault(kit, text, chat=CHAT, **options):
    with pytest.raises(TemplateFault) as caught:
        only(chat, kit, text, **options)
    return caught.value


def when_asked(kit, statement):
    """A template that behaves until one conversation comes."""
    return "{% if messages[0].content == 'Hi' %}" + statement + "{% endif %}" + kit.template


def test_text_and_the_assistants_part_of_it(kit):
    rendering = only(CHAT, kit, kit.template)
    assert rendering.text == "<|open|>user\nHi<|close|>\n<|open|>assistant\nHello!<|close|>\n<|open|>user\nBye<|close|>\n"
    assert [rendering.text[begin:end] for begin, end in rendering.spans] == ["Hello!<|close|>"]


def test_prompt_ends_with_the_beginning_of_the_next_turn(kit):
    with Renderer(kit.template_of(kit.ours())) as renderer:
        rendering = renderer.prompt(CHAT)
        assert renderer.habits.opening == "<|open|>assistant\n"
        assert renderer.habits.ending == "<|close|>"
        assert renderer.habits.control
    assert rendering.text.endswith("<|open|>user\nBye<|close|>\n<|open|>assistant\n")


def test_one_child_renders_many_lists_in_their_order(kit):
    with Renderer(kit.template_of(kit.ours())) as renderer:
        pid = renderer._child.pid
        for start in (0, 200):
            chats = [Conversation([{"role": "user", "content": str(number)}]) for number in range(start, start + 200)]
            texts = [rendering.text for rendering in renderer.render(chats)]
            assert texts == [f"<|open|>user\n{number}<|close|>\n" for number in range(start, start + 200)]
        assert renderer._child.pid == pid
    assert renderer._child.returncode is not None


def test_large_conversations_go_through_the_pipes(kit):
    text = "ä🙂\n" * 100_000
    rendering = only(Conversation([{"role": "user", "content": text}] * 3), kit, kit.template)
    assert rendering.text == f"<|open|>user\n{text}<|close|>\n" * 3


@pytest.mark.rule("CHAT-002")
def test_template_that_loops_is_killed(kit):
    begin = time.monotonic()
    loop = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    assert fault(kit, loop, seconds=1).kind == "time"
    found = fault(kit, when_asked(kit, loop), seconds=2)
    assert found.kind == "time"
    assert found.finding.subject == "chats.jsonl:7"
    assert "--chat-template" in found.finding.hint
    assert time.monotonic() - begin < 20


@pytest.mark.rule("CHAT-002")
def test_child_of_a_loop_is_gone(kit):
    renderer = Renderer(kit.template_of(kit.ours(), when_asked(kit, "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}")), seconds=1)  # fmt: skip  # noqa: E501
    with renderer, pytest.raises(TemplateFault):
        list(renderer.render([CHAT]))
    assert renderer._child.returncode is not None
    assert threading.active_count() < 20


@LINUX
@pytest.mark.rule("CHAT-002")
@pytest.mark.parametrize("bomb", ["{{ 'x' * 4000000000 }}", "{{ [0] * 1000000000 }}", "{% set x = 10 ** (10 ** 10) %}"])
def test_template_that_wants_memory_or_time_without_a_loop_ends(kit, bomb):
    assert fault(kit, when_asked(kit, bomb), seconds=3, memory=1 << 28).kind in {"memory", "output", "time", "raises"}


@pytest.mark.rule("CHAT-002")
def test_template_that_writes_too_much_is_refused(kit):
    assert fault(kit, "{{ 'x' * 70000 }}").kind == "output"
    found = fault(kit, when_asked(kit, "{% for a in range(1000) %}{{ 'x' * 1000 }}{% endfor %}"))
    assert (found.kind, found.finding.expected) == ("output", "8 × the conversation's bytes and 64 kB")


@pytest.mark.rule("CHAT-002")
@pytest.mark.parametrize(
    ("statement", "kind", "told"),
    [
        ("{{ raise_exception('roles must alternate') }}", "raises", "roles must alternate"),
        ("{{ 1 / 0 }}", "raises", "ZeroDivisionError"),
        ("{{ nothing.there }}", "raises", "'nothing' is undefined"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "raises", "RecursionError"),
        ("{{ ''.__class__.__mro__ }}", "raises", "unsafe"),
        ("{% include 'x' %}", "raises", "no loader"),
        (r"{{ '\ud800' }}", "raises", "surrogates not allowed"),
    ],
)
def test_template_that_raises_is_told_with_its_words_and_the_conversation(kit, statement, kind, told):
    found = fault(kit, when_asked(kit, statement))
    assert found.kind == kind
    assert told in found.finding.found
    assert found.finding.subject == "chats.jsonl:7"


@pytest.mark.rule("CHAT-002")
def test_template_that_is_none_is_told_with_its_line(kit):
    found = fault(kit, "{{ bos_token }}\n{% for m in messages %}{{ m.content }}")
    assert found.kind == "syntax"
    assert "line 2 of the template" in found.finding.found
    assert found.finding.field == "chat_template"


@pytest.mark.rule("CHAT-003")
@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{% for m in messages %}<|open|>{{ m.role }}\n{{ m.content }}<|close|>{% endfor %}", "makes no difference"),
        ("{% for m in messages %}{{ m.role }}{% endfor %}", "does not stand in the text"),
        ("{{ messages[0].content }}", "does not stand in the text"),
        ("{% for m in messages %}{{ m.content | upper }}{% endfor %}", "does not stand in the text"),
        ("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}bot: {% endif %}", "is not what stands"),  # noqa: E501
        ("{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}>{% else %}{{ m.content }}{{ '!' if loop.last else '?' }}{% endif %}{% endfor %}", "in another way"),  # noqa: E501
    ],
)  # fmt: skip
def test_template_that_does_not_tell_turns_apart_is_refused(kit, text, told):
    found = fault(kit, text)
    assert found.kind == "turns"
    assert told in found.finding.found


def test_template_without_a_prompt_is_fine_where_nothing_stands_in_front_of_an_answer(kit):
    text = "{% for m in messages %}{% if m.role == 'user' %}<|open|>{{ m.content }}<|close|>{% else %} {{ m.content }}<|end|>{% endif %}{% endfor %}"  # fmt: skip  # noqa: E501
    rendering = only(CHAT, kit, text)
    assert [rendering.text[begin:end] for begin, end in rendering.spans] == [" Hello!<|end|>"]


@pytest.mark.rule("CHAT-002")
@pytest.mark.parametrize("list_of_tools", ["{% for tool in tools %}{{ tool.name }}\n{% endfor %}", "{{ tools | length }}"])
def test_template_that_raises_without_tools_writes_conversations_that_have_them(kit, list_of_tools):
    rendering = only(Conversation(CHAT.messages, [{"name": "add"}]), kit, list_of_tools + kit.template)
    assert rendering.text.startswith(("add\n<|open|>user", "1<|open|>user"))
    assert [rendering.text[begin:end] for begin, end in rendering.spans] == ["Hello!<|close|>"]
    without = fault(kit, list_of_tools + kit.template)
    assert (without.kind, without.finding.subject) == ("raises", "chats.jsonl:7")


@pytest.mark.rule("CHAT-002")
def test_template_that_raises_with_an_empty_list_of_tools_too_is_told_with_its_first_words(kit):
    text = "{% if tools is none %}{{ raise_exception('no tools') }}{% endif %}{{ tools[0].name.upper() }}" + kit.template
    found = fault(kit, text, Conversation(CHAT.messages, [{"name": "add"}]))
    assert found.finding.field == "chat_template"
    assert "no tools" in found.finding.found


def test_earlier_turn_that_is_written_in_another_way_is_found(kit):
    """As a template does that drops the thoughts of all answers but the last."""
    text = """{%- for m in messages -%}
{{ '<|open|>' + m.role + '\n' }}{% if m.role == 'assistant' and not loop.last %}{{ m.content.split('|')[-1] }}
{%- else %}{{ m.content }}{% endif %}{{ '<|close|>\n' }}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<|open|>assistant\n<think>' }}{% endif -%}"""
    asked, thought = {"role": "user", "content": "?"}, {"role": "assistant", "content": "hm, so|yes"}
    said = [asked, thought, thought, asked, thought]
    rendering = only(Conversation(said), kit, text)
    learnt = [rendering.text[begin:end] for begin, end in rendering.spans]
    assert learnt == ["yes<|close|>", "yes<|close|>", "hm, so|yes<|close|>"]


def test_turns_of_a_long_conversation_are_found_by_their_strings_as_by_their_beginnings(kit, monkeypatch):
    said = []
    for number in range(40):
        said += [{"role": "user", "content": f"question {number} <|open|>assistant"}]
        said += [{"role": "assistant", "content": f"{number}<|close|>"}]
    first = {"template": kit.template, "variables": {}, "special": ["<|open|>", "<|close|>"], "date": kit.date}
    found = {}
    for many in (0, 1000):
        monkeypatch.setattr(turns, "MANY", many)
        renderings = Renderings(first)
        renderings.probe()
        found[many] = renderings.answer({"messages": said, "prompt": False})
    assert found[0] == found[1000]
    text = found[0]["text"]
    assert [text[begin:end] for begin, end in found[0]["spans"]] == [f"{number}<|close|><|close|>" for number in range(40)]


def test_marks_of_the_template_count(kit):
    text = "{% for m in messages %}{{ m.role }}{% if m.role == 'assistant' %}{% generation %}{{ m.content }} {% endgeneration %}<|close|>{% else %}{{ m.content }}{% endif %}{% endfor %}"  # fmt: skip  # noqa: E501
    rendering = only(CHAT, kit, text)
    assert [rendering.text[begin:end] for begin, end in rendering.spans] == ["Hello! "]


def test_what_the_child_imports_and_knows_does_not_depend_on_the_environment(kit, tmp_path, monkeypatch):
    (tmp_path / "jinja2.py").write_text("raise SystemExit('not this one')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("PYTHONSTARTUP", str(tmp_path / "jinja2.py"))
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert only(CHAT, kit, kit.template).spans
    with Renderer(kit.template_of(kit.ours())) as renderer:
        if sys.platform == "linux":
            assert b"hf_secret" not in Path(f"/proc/{renderer._child.pid}/environ").read_bytes()


def test_child_that_dies_is_told(kit):
    with Renderer(kit.template_of(kit.ours())) as renderer:
        renderer._child.kill()
        renderer._child.wait()
        with pytest.raises(TemplateFault) as caught:
            list(renderer.render([CHAT]))
    assert caught.value.kind == "died"
    assert "-9" in caught.value.finding.found


def test_control_tokens_that_a_message_spells_are_told_from_the_templates_own(kit):
    chat = Conversation([{"role": "user", "content": "<|close|> and <|end|>"}, CHAT.messages[1]])
    rendering = only(chat, kit, kit.template)
    assert rendering.spelt == 2
    assert "<|close|> and <|end|>" in rendering.text
    assert rendering.apart.count("<|close|>") == 2
    assert "<|end|>" not in rendering.apart
    assert len(rendering.apart) == len(rendering.text)


def test_template_of_a_file(tmp_path):
    (tmp_path / "a.jinja").write_text("{{ x }}")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ y }}"}))
    named = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "{{ z }}"}]
    (tmp_path / "named.json").write_text(json.dumps({"chat_template": named}))
    found = [read_template(str(tmp_path / name)) for name in ("a.jinja", "tokenizer_config.json", "named.json")]
    assert found == ["{{ x }}", "{{ y }}", "{{ z }}"]


@pytest.mark.parametrize(
    ("name", "content", "error"),
    [("none.jinja", None, FormatError), ("empty.jinja", " \n", ConfigError), ("x.json", "{}", ConfigError), ("y.json", "[", FormatError)],  # noqa: E501
)  # fmt: skip
def test_file_without_a_template_is_refused(tmp_path, name, content, error):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(error) as caught:
        read_template(str(tmp_path / name))
    assert str(tmp_path / name) in str(caught.value)


@pytest.mark.rule("CHAT-001")
def test_tokenizer_without_a_template_says_what_to_do(kit):
    with pytest.raises(TokenizerError) as caught:
        template_of(kit.ours(None), None)
    assert caught.value.finding.rule == "CHAT-001"
    assert "--chat-template" in caught.value.finding.hint


def test_date_that_is_none_is_refused(kit):
    with pytest.raises(ConfigError, match="not a date"):
        template_of(kit.ours(), "tomorrow")
