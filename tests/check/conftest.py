"""Real checkpoints on disk, small but of real shape, and the command line that checks them."""

import json
from pathlib import Path

import attrs
import gguf
import numpy as np
import pytest
from apr_train.artifact.metadata import apr_metadata
from apr_train.checkpoint.apr import AprWriter, TensorSpec
from apr_train.checkpoint.header import AddedToken, TokenizerSpec
from apr_train.cli import cli
from apr_train.family.card import Layout
from apr_train.family.registry import Registry
from click.testing import CliRunner
from safetensors.numpy import save_file

GGUF_KEYS = {
    "num_hidden_layers": "block_count",
    "max_position_embeddings": "context_length",
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "vocab_size": "vocab_size",
}


@attrs.define
class Checked:
    """What a check said."""

    exit_code: int
    text: str
    report: dict

    def ids(self, severity="error"):
        return {finding["id"] for finding in self.report["findings"] if finding["severity"] == severity}

    def finding(self, rule):
        """The only finding of a rule, as one line of text."""
        found = [item for item in self.report["findings"] if item["id"] == rule]
        assert len(found) == 1, [item["id"] for item in self.report["findings"]]
        return " | ".join(str(value) for value in found[0].values())


def run_check(*arguments):
    """`apr-train check` twice: for people and as JSON; both must agree on the exit status."""
    arguments = ["check", *(str(argument) for argument in arguments)]
    text = CliRunner().invoke(cli, arguments)
    machine = CliRunner().invoke(cli, [*arguments, "--json"])
    assert machine.exception is None or isinstance(machine.exception, SystemExit), machine.exception
    assert text.exit_code == machine.exit_code
    return Checked(machine.exit_code, text.output, json.loads(machine.stdout))


@pytest.fixture
def check():
    return run_check


@attrs.frozen
class Builder:
    """Writes checkpoints of a family into a folder; `metadata` and `tensors` edit what a sound file would have."""

    folder: Path
    registry: Registry

    def config(self, name, **changes):
        family = self.registry.family(name)
        return attrs.evolve(family.build_config(preset="tiny"), **changes)

    def shapes(self, name, config, layout=None):
        fills = self.registry.family(name).map_tensor_names(config, layout or Layout()).fills.values()
        edges = [edge for group in fills for edge in group if not (layout and layout.bare and edge.fresh_group)]
        return {edge.checkpoint: edge.checkpoint_shape for edge in edges}

    def apr(self, name, config=None, *, metadata=None, tensors=None, tokenizer=None, bare=False, drop=(), file="model.apr"):
        """An `.apr`; the arguments add to the metadata and to the tensors' shapes, `drop` takes keys or tensors out."""
        family, config = self.registry.family(name), config or self.config(name)
        hf_class = family.info.hf_classes[-1] if bare else None
        values = apr_metadata(config, family.info, tokenizer=tokenizer, hf_class=hf_class)
        values = {key: value for key, value in (values | (metadata or {})).items() if key not in drop}
        shapes = self.shapes(name, config, Layout(bare=bare)) | (tensors or {})
        shapes = {key: shape for key, shape in shapes.items() if shape is not None and key not in drop}
        return write_apr(self.folder / file, values, shapes)

    def safetensors(self, config_json, shapes, name="hf"):
        """A Hugging Face folder."""
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        save_file({key: np.zeros(shape, np.float32) for key, shape in shapes.items()}, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(config_json))
        return folder

    def gguf(self, name, config=None, *, rope_rows="split-half", keys=None, general=None, file="model.gguf"):
        """A GGUF without a tokenizer, written by llama.cpp's own package; `keys` get the architecture's prefix."""
        config = config or self.config(name)
        architecture = self.registry.family(name).info.gguf_architectures[0]
        writer = gguf.GGUFWriter(self.folder / file, architecture)
        for field, key in GGUF_KEYS.items():
            writer.add_uint32(f"{architecture}.{key}", getattr(config, field))
        writer.add_float32(f"{architecture}.rope.freq_base", config.rope_theta)
        writer.add_float32(f"{architecture}.attention.layer_norm_rms_epsilon", config.rms_norm_eps)
        for key, value in ({f"{architecture}.{key}": value for key, value in (keys or {}).items()} | (general or {})).items():
            add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
            add[type(value)](key, value)
        for tensor, shape in self.shapes(name, config, Layout(names="gguf", rope_rows=rope_rows)).items():
            writer.add_tensor(tensor, np.zeros(shape, np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return self.folder / file


def write_apr(path, metadata, shapes):
    with AprWriter(path, metadata, [TensorSpec(name, "BF16", tuple(shape)) for name, shape in shapes.items()]) as writer:
        for name, shape in shapes.items():
            writer.write(name, bytes(2 * int(np.prod(shape))))
    return path


@pytest.fixture(scope="session")
def registry():
    return Registry.discover()


@pytest.fixture
def build(tmp_path, registry):
    return Builder(tmp_path, registry)


@pytest.fixture
def import_folder(tmp_path):
    """A Hugging Face folder as the `.apr` that `apr-train import` makes of it."""

    def convert(folder, file="imported.apr"):
        done = CliRunner().invoke(cli, ["import", str(folder), "--output", str(tmp_path / file)])
        assert done.exit_code == 0, done.output
        return tmp_path / file

    return convert


def vocabulary(size):
    """That many distinct token strings; a byte-level alphabet's first, so that it is a possible BPE."""
    return tuple(f"t{number}" for number in range(size))


def embedded_tokenizer(size, special=22, **ids):
    """A tokenizer as checkpoints carry it: `size` ids, the last `special` of them added tokens."""
    words = vocabulary(size)
    added = tuple(AddedToken(id=number, content=words[number], special=True) for number in range(size - special, size))
    return TokenizerSpec(
        vocabulary=words, merges=("t 1",), pre_type="qwen2", added_tokens=added, special_ids=ids, size=size, origin="made up"
    )


@pytest.fixture(scope="session")
def spec():
    return embedded_tokenizer


@pytest.fixture(scope="session")
def tokenizer_file(tmp_path_factory):
    """`tokenizer_file(size)` → the path of a tokenizer.json with ids 0 to size - 1, the last 22 of them added tokens."""
    made = {}

    def make(size, extra=()):
        if (size, extra) not in made:
            words = vocabulary(size)
            added = [{"id": number, "content": words[number], "special": True} for number in range(size - 22, size)]
            added += [{"id": size - 1 - place, "content": word, "special": True} for place, word in enumerate(extra)]
            model = {"type": "BPE", "vocab": {word: number for number, word in enumerate(words[:-22])}, "merges": []}
            path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
            path.write_text(json.dumps({"version": "1.0", "added_tokens": added, "model": model}))
            made[size, extra] = path
        return made[size, extra]

    return make


@pytest.fixture(scope="session")
def roberta_folder(tmp_path_factory):
    """`roberta_folder(class name)` → a checkpoint that transformers made and saved."""
    import torch
    import transformers

    def make(class_name):
        torch.manual_seed(0)
        config = transformers.RobertaConfig(
            vocab_size=96,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=64,
            max_position_embeddings=34,
            type_vocab_size=1,
            layer_norm_eps=1e-5,
            pad_token_id=1,
        )
        folder = tmp_path_factory.mktemp(class_name)
        getattr(transformers, class_name)(config).save_pretrained(folder)
        return folder

    return make
