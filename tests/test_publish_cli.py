"""`apr-train publish`: a folder that transformers, the Hub's own card reader and sha256sum accept."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from apr_train.checkpoint.open import open_checkpoint
from apr_train.cli import cli
from apr_train.run.provenance import RUN_KEY
from click.testing import CliRunner
from huggingface_hub import ModelCard
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    RobertaConfig,
    RobertaForMaskedLM,
)

SIZES = {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
PROVENANCE = ("--license", "mit", "--data-source", "a | small corpus", "--data-license", "PSF-2.0")
METRICS = [
    {"step": 0, "val_loss": 4.5, "perplexity": 90.02},
    {"step": 1, "loss": 4.4, "lr": 1e-4},
    {"step": 2, "loss": 4.3, "val_loss": 4.0, "perplexity": 54.6},
    {"step": 3, "loss": 4.2, "val_loss": 3.0, "perplexity": 20.09},
]
SAMPLES = [
    {"step": 2, "prompt": "def f():", "text": "    return 1\n## Preflight"},
    {"step": 3, "prompt": "def g():", "text": "    return ```"},
]


def invoke(*arguments, code=0):
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result.output


def save(model, folder):
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.05)
    model.eval().save_pretrained(folder)
    vocabulary = {token: index for index, token in enumerate(["<|end|>", *sorted(pre_tokenizers.ByteLevel.alphabet())[:90]])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|end|>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|end|>"}))
    return model


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A tiny decoder as transformers has it, and the same as a bare .apr."""
    folder = tmp_path_factory.mktemp("original")
    config = LlamaConfig(**SIZES, num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=True)
    model = save(LlamaForCausalLM(config), folder / "hf")
    invoke("import", folder / "hf", "-o", folder / "m.apr")
    return model, folder / "m.apr"


@pytest.fixture
def file(original, tmp_path):
    path = shutil.copy(original[1], tmp_path / "m.apr")
    invoke("stamp", path, *PROVENANCE, "--name", "Tiny", "--description", "A test.")
    return path


@pytest.fixture
def run_file(original, tmp_path):
    """The same as the result of a run after step 2 of 3."""
    folder = tmp_path / "runs" / "r"
    folder.mkdir(parents=True)
    with open_checkpoint(original[1]) as checkpoint:
        from apr_train.checkpoint.apr import rewrite

        origin = {"step": 2, "corpus": "c" * 64, "settings": {"optimizer": {"lr": 0.001}}, "versions": {"apr-train": "1"}}
        rewrite(checkpoint, folder / "model.apr", {**checkpoint.raw_metadata, RUN_KEY: origin})
    (folder / "config.toml").write_text("[optimizer]\nlr = 0.001\n")
    (folder / "identity.json").write_text(json.dumps({"corpus": "c", "tokenizer": "t", "init": None}))
    for name, lines in (("metrics.jsonl", METRICS), ("samples.jsonl", SAMPLES)):
        (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    invoke("stamp", folder / "model.apr", *PROVENANCE)
    return folder / "model.apr"


def test_transformers_loads_the_folder_with_identical_logits(original, file, tmp_path):
    invoke("publish", file, "-o", tmp_path / "out")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    tokens = torch.arange(32)[None] % 96
    with torch.no_grad():
        assert torch.equal(loaded(tokens).logits, original[0](tokens).logits)
    assert AutoTokenizer.from_pretrained(tmp_path / "out").eos_token == "<|end|>"


def test_the_folder_holds_the_file_itself_and_checksums_that_sha256sum_confirms(file, tmp_path):
    out = tmp_path / "out"
    invoke("publish", file, "-o", out)
    names = {item.name for item in out.iterdir()}
    assert {"m.apr", "model.safetensors", "config.json", "tokenizer.json", "README.md", "MODEL_CARD.md"} < names
    assert (out / "m.apr").read_bytes() == file.read_bytes()
    done = subprocess.run(["sha256sum", "-c", "--strict", "SHA256SUMS"], cwd=out, capture_output=True, text=True, check=True)
    assert done.stdout.count(": OK") == len(names) - 1


def test_the_hubs_own_reader_understands_the_front_matter(run_file, tmp_path):
    args = ("--base-model", "org/base", "--dataset", "org/data", "--language", "code")
    invoke("publish", run_file, "-o", tmp_path / "out", *args)
    card = ModelCard.load(tmp_path / "out" / "README.md")
    data = card.data
    assert (data.license, data.library_name, data.pipeline_tag) == ("mit", "transformers", "text-generation")
    assert (data.base_model, data.datasets, data.language) == ("org/base", ["org/data"], ["code"])
    assert data.metrics == ["perplexity"]
    (result,) = data.eval_results
    assert (result.metric_type, result.metric_value, result.dataset_split) == ("perplexity", 54.6, "validation")
    assert (tmp_path / "out" / "MODEL_CARD.md").read_text() == (tmp_path / "out" / "README.md").read_text()


def test_the_card_tells_the_run_up_to_this_file_and_no_path(run_file, tmp_path):
    invoke("publish", run_file, "-o", tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    assert "| 2 | 4.0000 | 54.6 |" in text
    assert "| family verified | compared with transformers " in text
    assert "3.0000" not in text
    assert "    return 1\n## Preflight" in text
    assert "def g()" not in text
    assert "a \\| small corpus" in text
    assert "| lr | 0.001 |" in text
    assert "/home" not in text
    assert str(tmp_path) not in text


def test_a_file_away_from_its_run_is_published_without_the_runs_numbers(run_file, tmp_path):
    moved = shutil.copy(run_file, tmp_path / "elsewhere.apr")
    invoke("publish", moved, "-o", tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    assert "## Results" not in text
    assert "model-index" not in text
    assert "## Training" in text


def test_an_encoder_is_tagged_fill_mask_and_loads(tmp_path):
    config = RobertaConfig(**SIZES, max_position_embeddings=34, type_vocab_size=1, layer_norm_eps=1e-5)
    model = save(RobertaForMaskedLM(config), tmp_path / "hf")
    invoke("import", tmp_path / "hf", "-o", tmp_path / "e.apr")
    invoke("stamp", tmp_path / "e.apr", *PROVENANCE)
    invoke("publish", tmp_path / "e.apr", "-o", tmp_path / "out")
    assert ModelCard.load(tmp_path / "out" / "README.md").data.pipeline_tag == "fill-mask"
    tokens = torch.arange(5, 25)[None]
    with torch.no_grad():
        loaded = AutoModelForMaskedLM.from_pretrained(tmp_path / "out").eval()
        assert torch.equal(loaded(tokens).logits, model(tokens).logits)


def test_without_provenance_nothing_is_written_and_the_command_that_sets_it_works(original, tmp_path):
    path = shutil.copy(original[1], tmp_path / "m x.apr")
    message = invoke("publish", path, "-o", tmp_path / "out", code=1)
    assert not (tmp_path / "out").exists()
    assert f"apr-train stamp '{path}' --license SPDX --data-source TEXT --data-license SPDX" in message
    invoke("stamp", path, "--license", "MIT", "--data-source", "x")
    assert "--data-license SPDX" in invoke("publish", path, "-o", tmp_path / "out", code=1)
    invoke("stamp", path, "--data-license", "MIT")
    invoke("publish", path, "-o", tmp_path / "out")


def test_publishing_twice_replaces_and_gives_the_same_bytes(file, tmp_path):
    out = tmp_path / "out"
    invoke("publish", file, "-o", out)
    before = {item.name: item.read_bytes() for item in out.iterdir()}
    invoke("publish", file, "-o", out)
    assert {item.name: item.read_bytes() for item in out.iterdir()} == before
    assert {item.name for item in tmp_path.iterdir()} == {"m.apr", "out"}


@pytest.mark.rule("WRITE-002")
@pytest.mark.parametrize("names", [("notes.txt",), ("README.md",), ("config.json", "SHA256SUMS")])
def test_a_folder_with_something_else_is_left_alone(file, tmp_path, names):
    out = tmp_path / "out"
    out.mkdir()
    for name in names:
        (out / name).write_text("mine")
    assert "not one that apr-train publish wrote" in invoke("publish", file, "-o", out, code=1)
    assert {item.name: item.read_text() for item in out.iterdir()} == dict.fromkeys(names, "mine")


@pytest.mark.rule("WRITE-001")
def test_a_publication_is_not_replaced_by_one_that_is_made_from_it(file, tmp_path):
    out = tmp_path / "out"
    invoke("publish", file, "-o", out)
    before = {item.name: item.read_bytes() for item in out.iterdir()}
    (tmp_path / "link.apr").symlink_to(out / "m.apr")
    for source in (out / "m.apr", tmp_path / "link.apr"):
        assert "the folder holds the source" in invoke("publish", source, "-o", out, code=1)
    assert {item.name: item.read_bytes() for item in out.iterdir()} == before


@pytest.mark.rule("WRITE-002")
def test_an_edited_card_and_an_export_are_not_replaced_by_a_publication(file, tmp_path):
    out = tmp_path / "out"
    invoke("publish", file, "-o", out)
    (out / "README.md").write_text("a better card")
    message = invoke("publish", file, "-o", out, code=1)
    assert "files were changed since apr-train publish wrote them, found README.md" in message
    assert (out / "README.md").read_text() == "a better card"
    invoke("export", file, "-o", tmp_path / "export")
    message = invoke("publish", file, "-o", tmp_path / "export", code=1)
    assert "expected a folder that publish wrote, found one that export wrote" in message
    message = invoke("export", file, "-o", out, code=1)
    assert "expected a folder that export wrote, found one that publish wrote" in message


def test_a_damaged_file_is_not_published(file, tmp_path):
    raw = bytearray(file.read_bytes())
    raw[-100] ^= 1
    file.write_bytes(raw)
    invoke("publish", file, "-o", tmp_path / "out", code=1)
    assert not (tmp_path / "out").exists()


def test_what_is_no_apr_file_is_refused_with_what_to_give(file, tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"GGUF" + bytes(100))
    assert "apr-train import" in invoke("publish", tmp_path / "x.gguf", "-o", tmp_path / "out", code=1)
    (tmp_path / "run").mkdir()
    file.rename(tmp_path / "run/model.apr")
    assert "Give the file in it" in invoke("publish", tmp_path / "run", "-o", tmp_path / "out", code=1)


def test_bad_names_for_the_hub_are_refused(file, tmp_path):
    message = invoke("publish", file, "-o", tmp_path / "out", "--base-model", "/some/path", code=1)
    assert "--base-model" in message


def test_a_dataset_on_the_hub_is_recognised_in_the_data_source(file, tmp_path):
    invoke("stamp", file, "--data-source", "https://huggingface.co/datasets/org/data")
    invoke("publish", file, "-o", tmp_path / "out")
    assert ModelCard.load(tmp_path / "out" / "README.md").data.datasets == ["org/data"]


def test_help_has_an_example_and_the_command_needs_no_torch(file, tmp_path):
    assert "Example: apr-train publish" in invoke("publish", "--help")
    code = "import sys; from apr_train.cli import main\ntry: main()\nfinally: print('torch' in sys.modules)"
    command = [sys.executable, "-c", code, "publish", str(file), "-o", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"
