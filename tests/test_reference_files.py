"""Files of the reference implementation through the command line: opened, converted, trained from, and nothing of them lost."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from apr_train.checkpoint.apr import AprWriter, TensorSpec, open_apr, rewrite
from apr_train.checkpoint.open import open_checkpoint
from apr_train.checkpoint.tie import resolve_tie
from apr_train.cli import cli
from apr_train.family.registry import Registry
from apr_train.testing.agreement import our_logits
from apr_train.testing.models import model_from_file
from click.testing import CliRunner
from transformers import AutoModelForCausalLM, AutoTokenizer

CORPUS = Path(__file__).parents[1] / "core/tests/checkpoint/apr/corpus"
BARE = "trainer-checkpoint-bare.apr"
PLACEHOLDERS = ("llama-tied-placeholder.apr", "qwen2-tied-placeholder-bf16.apr")
MODELS = sorted(path.name for path in CORPUS.glob("*.apr") if path.name not in (BARE, "dtypes.apr"))
NOTED = ("trainer-checkpoint-state.apr", "trainer-bias-1xN.apr")
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 8, "num_hidden_layers": 1,
    "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 40, "intermediate_size": 16,
    "max_position_embeddings": 32, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
}  # fmt: skip
REWRITTEN = {"model_type", "architecture", "total_size", "param_count", "rope_type"}
"""What an import states anew; every other key arrives with its value."""


def call(*arguments, code=0):
    """`apr-train …` in this process."""
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result


def raw_metadata(path):
    with open_apr(path) as reader:
        return reader.raw_metadata


@pytest.mark.parametrize("name", MODELS)
def test_it_opens_in_every_command_that_reads_a_checkpoint(name, tmp_path):
    path = CORPUS / name
    report = json.loads(call("check", path, "--json").stdout)
    assert (report["ok"], report["errors"]) == (True, 0)
    warned = [finding["id"] for finding in report["findings"] if finding["id"] == "PREFLIGHT-022"]
    assert warned == (["PREFLIGHT-022"] if name in NOTED else [])
    assert json.loads(call("inspect", path, "--json").stdout)["families"] == [report["family"]]
    assert json.loads(call("validate", path, "--data", "--json").stdout)["valid"]
    call("import", path, "-o", tmp_path / "y.apr")
    call("diff", path, tmp_path / "y.apr")
    call("export", path, "-o", tmp_path / "hf")
    call("diff", path, tmp_path / "hf")


@pytest.mark.rule("PREFLIGHT-022")
@pytest.mark.parametrize("name", NOTED)
@pytest.mark.parametrize("command", ["inspect", "validate", "check", "import"])
def test_what_is_left_out_or_read_otherwise_is_said_by_each_command(name, command, tmp_path):
    more = ["-o", tmp_path / "y.apr"] if command == "import" else []
    assert "PREFLIGHT-022" in call(command, CORPUS / name, *more).output


@pytest.mark.parametrize("name", MODELS)
def test_an_import_keeps_every_metadata_key(name, tmp_path):
    call("import", CORPUS / name, "-o", tmp_path / "y.apr")
    before, after = raw_metadata(CORPUS / name), raw_metadata(tmp_path / "y.apr")
    assert {key: after.get(key) for key in before.keys() - REWRITTEN} == {key: before[key] for key in before.keys() - REWRITTEN}
    assert after.keys() >= REWRITTEN


def test_further_keys_of_a_file_survive_two_imports(tmp_path):
    path = tmp_path / "x.apr"
    extra = {
        "chat_template": "{{ x }}", "chat_format": "chatml", "special_tokens": {"bos": "<s>"},
        "someone.else": {"b": [1, {"c": 2}]},
        "tokenizer.model_name": "t", "version": "0.1", "author": "a", "description": "d", "license": "MIT",
    }  # fmt: skip
    with open_apr(CORPUS / "llama-tied-absent.apr") as reader:
        rewrite(reader, path, {**reader.raw_metadata, **extra})
    call("import", path, "-o", tmp_path / "y.apr")
    call("import", tmp_path / "y.apr", "-o", tmp_path / "z.apr")
    for name in ("y.apr", "z.apr"):
        assert raw_metadata(tmp_path / name).items() >= extra.items()
    assert raw_metadata(tmp_path / "y.apr") == raw_metadata(tmp_path / "z.apr")


@pytest.mark.parametrize("name", PLACEHOLDERS)
def test_what_is_written_of_a_declared_tie_holds_no_placeholder(name, tmp_path):
    call("import", CORPUS / name, "-o", tmp_path / "y.apr")
    with open_apr(tmp_path / "y.apr") as reader:
        assert "lm_head.weight" not in reader.entries
        assert reader.raw_metadata["tie_word_embeddings"] is True


def test_a_stamp_leaves_a_placeholder_where_it_is(tmp_path):
    path = Path(shutil.copy(CORPUS / PLACEHOLDERS[0], tmp_path))
    call("stamp", path, "--license", "MIT")
    with open_apr(path) as reader, open_apr(CORPUS / PLACEHOLDERS[0]) as before:
        assert reader.entries == before.entries
    call("validate", path)


def logits_of(folder):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return model(torch.arange(12)[None]).logits


def without_placeholder(path, target, *, copy):
    """The same weights with no head at all, or with the head stored a second time."""
    head, embedding = "lm_head.weight", "model.embed_tokens.weight"
    with open_apr(path) as reader:
        data = {name: (reader.entries[name], bytes(reader.read_raw(name))) for name in reader.header.tensors}
        data |= {head: data[embedding]} if copy else {}
        specs = [TensorSpec(name, entry.dtype.name, entry.shape) for name, (entry, _) in data.items()]
        with AprWriter(target, reader.raw_metadata, specs) as writer:
            for name, (_, raw) in data.items():
                writer.write(name, raw)
    return target


@pytest.mark.parametrize("name", PLACEHOLDERS)
def test_a_declared_tie_gives_the_logits_of_the_same_weights_without_it(name, tmp_path):
    (family,) = Registry.discover().claimants(open_apr(CORPUS / name).header)
    files = [
        CORPUS / name,
        without_placeholder(CORPUS / name, tmp_path / "absent.apr", copy=False),
        without_placeholder(CORPUS / name, tmp_path / "copy.apr", copy=True),
    ]
    loaded = [model_from_file(family, path) for path in files]
    with torch.no_grad():
        declared, absent, copied = (our_logits(family, model, torch.arange(12)[None]) for model, _ in loaded)
    assert torch.equal(declared, absent)
    assert torch.equal(declared, copied)
    assert loaded[0][1] == loaded[1][1]


@pytest.mark.parametrize("name", [*PLACEHOLDERS, *NOTED])
def test_it_computes_what_transformers_does_with_its_export(name, tmp_path):
    call("export", CORPUS / name, "-o", tmp_path / "hf", "--dtype", "f32")
    with open_checkpoint(CORPUS / name) as checkpoint:
        header = resolve_tie(checkpoint)
        (family,) = Registry.discover().claimants(header)
    model, _ = model_from_file(family, CORPUS / name, dtype=torch.float32)
    with torch.no_grad():
        found = our_logits(family, model, torch.arange(12)[None])
    torch.testing.assert_close(found, logits_of(tmp_path / "hf"), rtol=1e-5, atol=1e-6)


@pytest.mark.rule("FALSIFY-APR-PRETRAIN-ARCH-003")
@pytest.mark.parametrize("command", ["check", "import", "export"])
def test_a_checkpoint_without_dimensions_says_which_config_json_would_do(command, tmp_path):
    more = [] if command == "check" else ["-o", tmp_path / "y"]
    said = call(command, CORPUS / BARE, *more, code=3).output
    assert said.count("FALSIFY-APR-PRETRAIN-ARCH-003") == 1
    assert "no config.json lies beside it" in said
    assert "Put the model's config.json" in said


@pytest.mark.rule("PREFLIGHT-022")
def test_a_checkpoint_without_dimensions_opens_with_a_config_json_beside_it(tmp_path):
    path = Path(shutil.copy(CORPUS / BARE, tmp_path))
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    assert "PREFLIGHT-022" in call("check", path).output
    call("import", path, "-o", tmp_path / "y.apr")
    call("diff", tmp_path / "y.apr", path)
    (tmp_path / "config.json").unlink()
    assert "PREFLIGHT-022" not in call("check", tmp_path / "y.apr").output


@pytest.fixture(scope="module")
def trainable(tmp_path_factory):
    """A tokenizer of 40 tokens as a file, and text that it can spell."""
    folder = tmp_path_factory.mktemp("data")
    call("export", CORPUS / "tokenizer-gguf-keys.apr", "-o", folder / "hf")
    (folder / "text").mkdir()
    draw = np.random.default_rng(0)
    for number in range(20):
        words = ["".join(draw.choice(list("abcdefg"), draw.integers(1, 6))) for _ in range(60)]
        (folder / "text" / f"{number}.txt").write_text(" ".join(words))
    return folder


RUN = (
    "--steps", "2", "--sequence-length", "16", "--batch-size", "2", "--val-batches", "1", "--sample-tokens", "0",
    "--allow-cold-init", "--device", "cpu", "--precision", "fp32", "--threads", "1", "--attention", "sdpa",
)  # fmt: skip


def train(name, folder, trainable, *more):
    call("train", "--init", CORPUS / name, "--data", trainable / "text", "--out", folder / "runs", "--run", "r", *RUN, *more)
    return folder / "runs" / "r"


@pytest.mark.parametrize(
    "name", [*PLACEHOLDERS, "trainer-checkpoint.apr", "trainer-checkpoint-state.apr", "trainer-bias-1xN.apr"]
)
def test_it_can_be_trained_from_and_measured(name, tmp_path, trainable, monkeypatch):
    monkeypatch.setenv("APR_TRAIN_CACHE", str(tmp_path / "cache"))
    tokenizer = ("--tokenizer", trainable / "hf" / "tokenizer.json")
    run = train(name, tmp_path, trainable, *tokenizer)
    with open_apr(run / "model.apr") as reader:
        assert "format" not in reader.raw_metadata
        assert not [entry for entry in reader.entries.values() if entry.is_placeholder or entry.name.startswith("__training__")]
        assert len(reader.header.tensors) == (12 if name.startswith("trainer-checkpoint") else 11 if "llama" in name else 14)
    measured = call("eval", CORPUS / name, "--data", trainable / "text", *tokenizer, "--sequence-length", "16", "--json")
    assert json.loads(measured.stdout)


def test_a_training_and_an_export_lose_no_tokenizer_key(tmp_path, trainable, monkeypatch):
    monkeypatch.setenv("APR_TRAIN_CACHE", str(tmp_path / "cache"))
    before = raw_metadata(CORPUS / "tokenizer-gguf-keys.apr")
    run = train("tokenizer-gguf-keys.apr", tmp_path, trainable)
    keys = {key: value for key, value in before.items() if key.startswith("tokenizer.")}
    assert raw_metadata(run / "model.apr").items() >= keys.items()
    call("export", run / "model.apr", "-o", tmp_path / "hf")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (33, 33, 36)
    assert tokenizer.chat_template == before["tokenizer.chat_template"]
    assert tokenizer("ab<|im_start|>c").input_ids == [33, 28, 34, 2]
    assert {token: entry.special for token, entry in tokenizer.added_tokens_decoder.items()} == dict.fromkeys(
        range(33, 37), True
    )
