"""What is changed: a small model in every container, corpora, and runs of two steps, whole and right, made anew each time."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import zstandard

from tests.fuzz.containers import gguf

SIZES = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
CONFIG = {
    **SIZES,
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "rope_scaling": {"rope_type": "linear", "factor": 2.0},
    "tie_word_embeddings": False,
    "initializer_range": 0.02,
    "bos_token_id": 1,
    "eos_token_id": 0,
}
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|endoftext|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CARD = "---\nlicense: apache-2.0\nauthor: somebody\nlanguage: [en]\n---\n\n# A model\n"


_COMMANDS = """
import json, sys
from apr_train.cli import cli
for words in json.loads(sys.argv[1]):
    if code := cli.main(words, prog_name="apr-train", standalone_mode=False):
        sys.exit(code)
"""


def commands(*lines: Sequence[object], cwd: Path, cache: str) -> None:
    """Run `apr-train` several times, in one process, which imports torch once; each has to succeed."""
    words = [sys.executable, "-c", _COMMANDS, json.dumps([[str(word) for word in line] for line in lines])]
    environment = {**os.environ, "APR_TRAIN_CACHE": str(cwd / cache), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{lines}: {done.stderr[-2000:]}")


def make_seeds(folder: Path) -> None:
    """Write models in every container, corpora in every form, runs that learn each in another way, and a cache."""
    for name in ("hf", "apr", "shards", "safetensors", "gguf", "data", "saved", "settings"):
        (folder / name).mkdir(parents=True)
    _corpora(folder)
    _hugging_face(folder / "hf")
    for name in ("config.json", "model.safetensors"):
        (folder / "safetensors" / name).write_bytes((folder / "hf" / name).read_bytes())
    (folder / "gguf" / "model.gguf").write_bytes(gguf(*gguf_parts(folder / "hf")))
    commands(("import", "hf", "-o", "apr/model.apr"), *RUNS, *map(_stamp, STAMPED), TOKENS, cwd=folder, cache="used")
    commands([word.format(seeds=folder) for word in CACHED], cwd=folder, cache="cache")
    _shards(folder / "apr" / "model.apr", folder / "shards")
    shutil.copytree(folder / "lora" / "adapter", folder / "adapter")


def _tensors(names: str) -> dict[str, np.ndarray]:
    from apr_train.checkpoint.header import Header
    from apr_train.family import Layout
    from apr_train.family.registry import Registry

    family = Registry.discover().family("llama370m")
    header = Header(path="", format="safetensors", config={key: CONFIG[key] for key in CONFIG if key != "rope_scaling"})
    config = family.build_config(header=header)
    shapes = family.map_tensor_names(config, Layout(names=names)).tensors
    random = np.random.default_rng(0)
    return {name: (random.standard_normal(shape) * 0.02).astype(np.float32) for name, shape in shapes.items()}


def _hugging_face(folder: Path) -> None:
    from safetensors.numpy import save_file
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    save_file(_tensors("hf"), folder / "model.safetensors", {"format": "pt"})
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<|endoftext|>", "<|im_start|>", "<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"]
    trainer = trainers.BpeTrainer(vocab_size=290, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(["def f(x): return x + f(x)"] * 9, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    content = json.loads((folder / "tokenizer.json").read_text())
    merges = "".join(" ".join(pair) + "\n" for pair in content["model"]["merges"])
    files = {
        "config.json": CONFIG,
        "generation_config.json": {"eos_token_id": [0], "max_length": 20},
        "tokenizer_config.json": {
            "eos_token": "<|endoftext|>",
            "tokenizer_class": "GPT2Tokenizer",
            "model_max_length": 1000000000000000019884624838656,
            "chat_template": TEMPLATE,
            "added_tokens_decoder": {"0": {"content": "<|endoftext|>", "special": True}},
        },
        "special_tokens_map.json": {"eos_token": {"content": "<|endoftext|>", "lstrip": False}},
        "vocab.json": content["model"]["vocab"],
        "added_tokens.json": {"<|im_start|>": 1},
    }
    for name, values in files.items():
        (folder / name).write_text(json.dumps(values, indent=1))
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}")
    (folder / "README.md").write_text(CARD)
    (folder / "chat_template.jinja").write_text(TEMPLATE)


def _shards(model: Path, folder: Path) -> None:
    from apr_train.checkpoint.apr import AprWriter, Flags, TensorSpec, open_apr

    with open_apr(model) as whole:
        names = sorted(whole.entries)
        halves = (names[: len(names) // 2], names[len(names) // 2 :])
        for number, own in enumerate(halves):
            specs = [TensorSpec(name, whole.entries[name].dtype.name, whole.entries[name].shape) for name in own]
            metadata = {**whole.raw_metadata, "sharding": {"shard_count": 2, "shard_index": number, "total_size": 1}}
            with AprWriter(folder / f"model-0000{number + 1}-of-00002.apr", metadata, specs, flags=Flags.SHARDED) as writer:
                for name in own:
                    writer.write(name, whole.read_raw(name))
    manifest = {
        "version": "2.0",
        "shard_count": 2,
        "total_size": 1,
        "tensor_count": len(names),
        "shards": [{"filename": f"model-0000{number}-of-00002.apr", "index": number - 1} for number in (1, 2)],
        "weight_map": {name: number for number, own in enumerate(halves) for name in own},
    }
    (folder / "model.apr.json").write_text(json.dumps(manifest))


GGUF_KEYS = {
    "hidden_size": "embedding_length",
    "num_hidden_layers": "block_count",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "max_position_embeddings": "context_length",
}


def gguf_parts(folder: Path):
    """Pairs, tensors and data of the model as a GGUF, one of its tensors in blocks."""
    content = json.loads((folder / "tokenizer.json").read_text())
    tokens = sorted(content["model"]["vocab"], key=content["model"]["vocab"].get)
    pairs = [("general.architecture", 8, "llama"), ("general.name", 8, "a model"), ("general.license", 8, "mit")]
    pairs += [(f"llama.{key}", 4, SIZES[name]) for name, key in GGUF_KEYS.items()]
    pairs += [("llama.attention.layer_norm_rms_epsilon", 6, 1e-5), ("llama.rope.freq_base", 6, 10000.0)]
    pairs += [("llama.vocab_size", 4, SIZES["vocab_size"]), ("llama.rope.dimension_count", 4, 8)]
    pairs += [("tokenizer.ggml.model", 8, "gpt2"), ("tokenizer.ggml.pre", 8, "gpt-2"), ("general.alignment", 4, 32)]
    pairs += [("tokenizer.ggml.tokens", 9, (8, tokens)), ("tokenizer.ggml.eos_token_id", 4, 0)]
    pairs += [("tokenizer.ggml.merges", 9, (8, [" ".join(pair) for pair in content["model"]["merges"]]))]
    pairs += [("tokenizer.ggml.token_type", 9, (5, [3, 3] + [1] * (len(tokens) - 2)))]
    pairs += [("tokenizer.ggml.add_bos_token", 7, 0), ("tokenizer.chat_template", 8, "{{ messages }}")]
    data, tensors = b"", []
    for name, array in _tensors("gguf").items():
        blocks = name.endswith("attn_v.weight")
        raw = bytes(array.size // 32 * 34) if blocks else array.tobytes()
        tensors.append((name, tuple(reversed(array.shape)), 8 if blocks else 0, len(data)))
        data += raw + bytes(-len(raw) % 32)
    return pairs, tensors, data


SHORT = (
    *("--steps", 2, "--save-every", 1, "--keep", 2, "--out", ".", "--sequence-length", 16, "--batch-size", 2, "--val-every", 1),
    *("--val-batches", 1, "--sample-tokens", 4, "--device", "cpu", "--precision", "fp32", "--threads", 1, "--allow-cold-init"),
)
ADAPTED = ("--run", "lora", "--objective", "sft", "--lora-rank", 2, "--validation-fraction", 0.3, "--sequence-length", 64)
RUNS = (
    ("--init", "hf", "--data", "data/d", *SHORT, "--run", "run", "--prompt", "def f"),
    ("--resume", "run/step-000001", "--lr", 1e-4),
    ("--init", "hf", "--data", "data/chat.jsonl", *SHORT, *ADAPTED),
    ("--init", "hf", "--data", "data/d", *SHORT, "--run", "fim", "--objective", "fim", "--ema", 0.5, "--profile", "2:2"),
    ("--arch", "codebert", "--preset", "tiny", "--vocab-size", 300, "--data", "data/d", *SHORT, "--run", "masked"),
)
"""One of each objective; one is resumed with another setting, one trains adapters."""
TOKENS = ("tokenize", "--init", "hf", "--data", "data/d", "--sequence-length", 16, "--device", "cpu", "-o", "tokens")
"""A command that writes token shards."""
STAMPED = ("apr/model.apr", "run/model.apr", "fim/model.apr", "masked/model.apr")
"""What is published, for which it must say what it was trained on."""
CACHED = ("tokenize", "--init", "{seeds}/hf", "--data", "{seeds}/data/d", "--sequence-length", "16", "--device", "cpu")
"""A command that finds its tokens in the cache."""
MIXTURE = """[model]
arch = "llama370m"
init = "{0}/hf"
[data]
validation_fraction = 0.2
sequence_length = 16
[[data.source]]
name = "texts"
path = "{0}/data/d"
weight = 0.5
[[data.source]]
name = "lines"
path = "{0}/data/lines.jsonl"
weight = 0.5
"""


def _stamp(file: str) -> tuple[str, ...]:
    return ("stamp", file, "--license", "MIT", "--data-source", "numbers", "--data-license", "MIT")


def _corpora(folder: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    data, saved = folder / "data", folder / "saved"
    (data / "d").mkdir()
    texts = [" ".join(map(str, range(number * 100, number * 100 + 90))) for number in range(12)]
    for number, text in enumerate(texts):
        (data / "d" / f"{number}.txt").write_text(text)
    records = [{"text": text, "id": number, "meta": {"tags": ["a", None, 1.5]}} for number, text in enumerate(texts)]
    lines = "".join(json.dumps(record) + "\n" for record in records).encode()
    chats = [{"messages": [*_turns(text)], "tools": [{"type": "function", "function": {"name": "f"}}]} for text in texts]
    table = pyarrow.table({"text": texts, "id": list(range(len(texts)))})
    with pyarrow.OSFile(str(data / "x.arrow"), "wb") as sink, pyarrow.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=3)
    shard = str(saved / "data-00000-of-00001.arrow")
    with pyarrow.OSFile(shard, "wb") as sink, pyarrow.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    parquet.write_table(table, data / "x.parquet", row_group_size=3)
    files = {
        data / "lines.jsonl": lines,
        data / "array.json": json.dumps(records).encode(),
        data / "packed.jsonl.gz": gzip.compress(lines, mtime=0),
        data / "packed.txt.zst": zstandard.compress("\n".join(texts).encode()),
        data / "ids.bin": struct.pack("<256i", 20240520, 1, 600, *[0] * 253) + struct.pack("<600H", *([0, *range(2, 31)] * 20)),
        data / "chat.jsonl": "".join(json.dumps(chat) + "\n" for chat in chats).encode(),
        data / "turns.jinja": TEMPLATE.encode(),
        saved / "state.json": json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_split": None}).encode(),
        saved / "dataset_info.json": json.dumps({"features": {"text": {"dtype": "string"}}}).encode(),
        folder / "settings" / "run.toml": MIXTURE.format(folder).encode(),
    }
    for path, raw in files.items():
        path.write_bytes(raw)


def _turns(text: str) -> Iterator[dict[str, str]]:
    yield {"role": "user", "content": text[:9]}
    yield {"role": "assistant", "content": text[9:20]}
