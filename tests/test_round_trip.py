"""An export is what came in: file by file, key by key, after `.apr`, a training, and a publication."""

import json
import shutil

import pytest
import torch
import yaml
from apr_train.checkpoint.open import open_checkpoint
from apr_train.cli import cli
from click.testing import CliRunner
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    RobertaConfig,
    RobertaForMaskedLM,
)

SIZES = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
DECODER = {**SIZES, "num_key_value_heads": 2, "max_position_embeddings": 64}
TEMPLATES = [{"name": "default", "template": "{{ messages }}"}, {"name": "tool_use", "template": "{{ tools }}"}]
SPECIAL = ["<s>", "</s>", "<unk>", "<pad>", "<mask>", "<|endoftext|>", "<|im_end|>"]
GENERATION = {"do_sample": True, "temperature": 0.7, "top_k": 20, "top_p": 0.8, "repetition_penalty": 1.1, "max_new_tokens": 5}
README = "---\nlicense: other\nlicense_name: my-terms\nlicense_link: LICENSE\nauthor: Somebody\ntags: [a]\n---\n# Theirs\n"


def invoke(*arguments, code=0):
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result.output


def tokenizer(**how):
    """A byte-level BPE with special tokens, as transformers wraps it; what is None in `how` is not set."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*SPECIAL, *alphabet])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    if how.get("bos_token"):
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
        )
    how = {name: value for name, value in how.items() if value is not None}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **how)


def edit(path, **changes):
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps(content))


def llama(folder):
    """As older tools have it: names of transformers 4, templates by name, token ids that are explicitly unset."""
    LlamaForCausalLM(LlamaConfig(**DECODER, bos_token_id=None, eos_token_id=[1, 5])).save_pretrained(folder)
    tokenizer(bos_token="<s>", eos_token="</s>", pad_token="<pad>", model_max_length=48).save_pretrained(folder)
    edit(
        folder / "tokenizer_config.json",
        chat_template=TEMPLATES,
        added_by_somebody={"deep": [1, None, 1e-7]},
        padding_side="left",
    )
    edit(folder / "config.json", torch_dtype="float32", use_cache=False, pad_token_id=None, n_ctx=64, **{"x.y": 1})
    (folder / "special_tokens_map.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": {"content": "</s>"}}))


def qwen2(folder):
    """config.json has a bos, the tokenizer has none; one template beside, one more in a folder; no limit of length."""
    Qwen2ForCausalLM(Qwen2Config(**DECODER, bos_token_id=5, eos_token_id=6, tie_word_embeddings=True)).save_pretrained(folder)
    tokenizer(eos_token="<|im_end|>", pad_token="<|endoftext|>").save_pretrained(folder)
    edit(folder / "tokenizer_config.json", bos_token=None, unk_token=None, model_max_length=int(1e30), errors="replace")
    (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}\n")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "rag.jinja").write_text("{{ documents }}")


def roberta(folder):
    config = RobertaConfig(
        **SIZES, max_position_embeddings=66, type_vocab_size=1, pad_token_id=3, bos_token_id=0, eos_token_id=1
    )
    RobertaForMaskedLM(config).save_pretrained(folder)
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>", "mask_token": "<mask>"}
    tokenizer(**tokens, cls_token="<s>", sep_token="</s>", model_max_length=64).save_pretrained(folder)
    edit(folder / "tokenizer_config.json", trim_offsets=True)


MODELS = {"llama": llama, "qwen2": qwen2, "roberta": roberta}


@pytest.fixture(params=MODELS)
def original(request, tmp_path):
    """A folder as transformers saves it, with what else people's folders have."""
    torch.manual_seed(0)
    folder = tmp_path / "original"
    MODELS[request.param](folder)
    if request.param != "roberta":
        generation = {**json.loads((folder / "generation_config.json").read_text()), **GENERATION, "somebodys": {"key": 1}}
        (folder / "generation_config.json").write_text(json.dumps(generation))
    (folder / "README.md").write_text(README)
    return folder


def content_of(path):
    return json.loads(path.read_text()) if path.suffix == ".json" else path.read_text()


def files_of(folder):
    names = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return {str(name): folder / name for name in names if name.suffix in (".json", ".jinja")}


WRITTEN_AS_WELL = {
    "rope_theta": "transformers 4 reads it here, transformers 5 in rope_parameters",
    "head_dim": "stated, not left to hidden_size / num_attention_heads",
    "rms_norm_eps": "stated",
    "attention_bias": "stated",
    "mlp_bias": "stated",
    "hidden_act": "stated",
    "tie_word_embeddings": "stated, as the tensors have it",
    "rope_parameters": "both spellings",
    "use_sliding_window": "stated",
}
"""Keys that an exported config.json may have although the source's has not, and why."""


def check_files(folder, out):
    """Every JSON and every template that came in went out, key by key; nothing came but our mark."""
    mine, theirs = files_of(folder), files_of(out)
    assert theirs.keys() - mine.keys() == {"apr-train.json"}
    assert mine.keys() - theirs.keys() == set()
    for name, path in mine.items():
        before, after = content_of(path), content_of(theirs[name])
        if name == "config.json":
            more = after.keys() - before.keys()
            assert more <= WRITTEN_AS_WELL.keys(), more
            after = {key: value for key, value in after.items() if key not in more}
        assert after == before, name


def check_licence(out):
    front = yaml.safe_load((out / "README.md").read_text().split("---")[1])
    assert {
        "license": "other",
        "license_name": "my-terms",
        "license_link": "LICENSE",
        "author": "Somebody",
    }.items() <= front.items()


def check_transformers(folder, out, *, apart=0.0):
    """transformers makes the same of both folders: logits, tokens, chat, generation."""
    auto = AutoModelForMaskedLM if "Roberta" in (folder / "config.json").read_text() else AutoModelForCausalLM
    one, other = (auto.from_pretrained(path).eval() for path in (folder, out))
    ids = torch.arange(8, 40)[None]
    with torch.no_grad():
        assert float((one(ids).logits - other(ids).logits).abs().max()) <= apart
    mine, theirs = (AutoTokenizer.from_pretrained(path) for path in (folder, out))
    assert type(mine) is type(theirs)
    for text in ("def f(x):\n    return x", "<s>hé</s><mask>", ""):
        assert mine(text)["input_ids"] == theirs(text)["input_ids"]
    assert mine.special_tokens_map == theirs.special_tokens_map
    assert mine.model_max_length == theirs.model_max_length
    assert mine.padding_side == theirs.padding_side
    assert mine.chat_template == theirs.chat_template
    if (folder / "generation_config.json").exists():
        assert GenerationConfig.from_pretrained(folder) == GenerationConfig.from_pretrained(out)
        assert one.generation_config == other.generation_config
    assert {name: getattr(one.config, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id", "dtype")} == {
        name: getattr(other.config, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id", "dtype")
    }


@pytest.mark.parametrize("way", ["through .apr", "at once"])
def test_an_export_is_what_came_in(original, tmp_path, way):
    source = original
    if way == "through .apr":
        source = tmp_path / "m.apr"
        invoke("import", original, "-o", source)
        assert "the same model" in invoke("diff", original, source)
    invoke("export", source, "-o", tmp_path / "out")
    check_files(original, tmp_path / "out")
    check_licence(tmp_path / "out")
    check_transformers(original, tmp_path / "out")
    assert "the same model" in invoke("diff", original, tmp_path / "out")


def test_a_training_keeps_what_came_in(original, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("APR_TRAIN_CACHE", str(tmp_path / "cache"))
    (tmp_path / "d").mkdir()
    for number in range(8):
        (tmp_path / "d" / f"{number}.py").write_text(f"def f{number}(x):\n    return x + {number}\n" * 9)
    small = ("--sequence-length", "16", "--batch-size", "2", "--val-batches", "1", "--sample-tokens", "0", "--threads", "1")
    more = ("--device", "cpu", "--precision", "fp32", "--lr", "1e-30", "--weight-decay", "0", "--allow-cold-init")
    invoke("--init", original, "--data", "d", "--steps", "1", "--run", "x", *small, *more)
    invoke("--resume", "runs/x", "--steps", "2")
    invoke("export", "runs/x/model.apr", "-o", "out")
    check_files(original, tmp_path / "out")
    check_licence(tmp_path / "out")
    check_transformers(original, tmp_path / "out", apart=1e-20)  # zeros have moved by the learning rate
    invoke("stamp", "runs/x/model.apr", "--license", "MIT", "--data-source", "d", "--data-license", "MIT")
    invoke("publish", "runs/x/model.apr", "-o", "published")
    published = tmp_path / "published"
    check_files(original, published)
    check_transformers(original, published, apart=1e-20)
    invoke("export", "runs/x/model.apr", "-o", "stamped")
    for folder in (published, tmp_path / "stamped"):
        text = (folder / "README.md").read_text()
        assert "author: Somebody" in text
        assert "license_name" not in text  # that of the licence before


def test_another_tokenizer_brings_its_own_files(tmp_path):
    torch.manual_seed(0)
    qwen2(tmp_path / "a")
    llama(tmp_path / "b")
    shutil.copy(tmp_path / "b" / "tokenizer.json", tmp_path / "a")
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(tmp_path / "b" / name, tmp_path / "a")
    with open_checkpoint(tmp_path / "a") as checkpoint:
        found = checkpoint.header.tokenizer.companions
    assert found["tokenizer_config.json"]["padding_side"] == "left"
    assert "bos" in checkpoint.header.tokenizer.special_ids


def test_a_token_that_the_tokenizer_says_is_unset_is_not_taken_from_the_config(tmp_path):
    qwen2(tmp_path / "a")
    with open_checkpoint(tmp_path / "a") as checkpoint:
        assert checkpoint.header.config["bos_token_id"] == 5
        assert checkpoint.header.tokenizer.special_ids == {"eos": 6, "pad": 5}


CHANGES = {
    "generation_config.json [top_k]": ("generation_config.json", {"top_k": 3}),
    "tokenizer_config.json [model_max_length]": ("tokenizer_config.json", {"model_max_length": 7}),
    "config.json [use_cache]": ("config.json", {"use_cache": None}),
}


@pytest.mark.parametrize("line", CHANGES)
def test_diff_names_the_file_and_the_key_that_differ(tmp_path, line):
    llama(tmp_path / "a")
    edit(tmp_path / "a" / "generation_config.json", **GENERATION)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    name, change = CHANGES[line]
    edit(tmp_path / "b" / name, **change)
    assert line in invoke("diff", tmp_path / "a", tmp_path / "b", code=1)


@pytest.mark.parametrize("name", ["../x", "/x", "", ".", "a/b"])
def test_a_template_from_a_files_metadata_does_not_lead_out_of_the_folder(tmp_path, name):
    from apr_train.checkpoint.apr import rewrite

    llama(tmp_path / "a")
    invoke("import", tmp_path / "a", "-o", tmp_path / "m.apr")
    with open_checkpoint(tmp_path / "m.apr") as checkpoint:
        files = {**checkpoint.raw_metadata["apr_train.files"], "additional_chat_templates": {name: "x"}}
        rewrite(checkpoint, tmp_path / "m.apr", {**checkpoint.raw_metadata, "apr_train.files": files})
    before = sorted(tmp_path.rglob("*"))
    assert "not a chat template" in invoke("export", tmp_path / "m.apr", "-o", tmp_path / "out", code=1)
    assert sorted(tmp_path.rglob("*")) == before
