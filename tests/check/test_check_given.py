"""What people give for a model and a tokenizer, at the command line: one door for every command."""

import json

import numpy as np
import pytest
import tokenizers
import transformers
from apr_train.cli import cli
from click.testing import CliRunner
from safetensors.numpy import load_file, save_file
from tokenizers import models, pre_tokenizers, trainers

DOWNLOAD = "hf download Org/Model-1B --local-dir Model-1B"
INIT_003 = "FALSIFY-APR-PRETRAIN-INIT-003"


def run(*arguments):
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("some text\n" * 40)
    return tmp_path / "text.txt"


@pytest.mark.rule(INIT_003)
@pytest.mark.parametrize(
    "command",
    [
        ("check", "MODEL"),
        ("--init", "MODEL", "--data", "text.txt", "--dry-run"),
        ("--init", "MODEL", "--data", "text.txt"),
        ("inspect", "MODEL"),
        ("validate", "MODEL"),
        ("import", "MODEL", "-o", "m.apr"),
        ("export", "MODEL", "-o", "out"),
        ("eval", "MODEL", "--data", "text.txt"),
        ("generate", "MODEL", "--prompt", "x"),
        ("diff", "MODEL", "MODEL"),
    ],
)
def test_every_command_says_how_to_download_a_model_of_the_hub(command, data):
    done = run(*(part.replace("MODEL", "Org/Model-1B") for part in command))
    assert done.exit_code != 0
    assert INIT_003 in done.output
    assert DOWNLOAD in done.output


@pytest.mark.rule("PREFLIGHT-018")
@pytest.mark.parametrize(
    "command",
    [("check", "--arch", "llama370m"), ("--arch", "llama370m", "--preset", "tiny", "--data", "text.txt", "--dry-run")],
)
def test_a_tokenizer_of_the_hub_says_how_to_download_it(command, data):
    done = run(*command, "--tokenizer", "Org/Model-1B")
    assert done.exit_code == 3
    assert "PREFLIGHT-018" in done.output
    assert DOWNLOAD in done.output


@pytest.fixture
def qwen(build, spec):
    """A sound Hugging Face folder."""

    def make(name="hf"):
        config = build.config("qwen2")
        keys = {
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
        }
        values = {key: getattr(config, key) for key in keys} | {
            "rms_norm_eps": config.rms_norm_eps,
            "rope_theta": config.rope_theta,
        }
        values |= {"max_position_embeddings": config.max_position_embeddings, "tie_word_embeddings": config.tie_word_embeddings}
        values |= {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}
        return build.safetensors(values, build.shapes("qwen2", config), name)

    return make


@pytest.mark.rule("PREFLIGHT-021")
def test_a_second_set_of_weights_is_a_warning_of_every_command_that_opens_the_folder(qwen, check, tmp_path):
    folder = qwen()
    save_file({"other": np.ones(2, np.float32)}, folder / "consolidated.safetensors")
    checked = check(folder)
    assert checked.exit_code == 0
    assert "consolidated.safetensors (not read)" in checked.finding("PREFLIGHT-021")
    for command in (
        ("inspect", folder),
        ("validate", folder),
        ("import", folder, "-o", tmp_path / "m.apr"),
        ("diff", folder, folder),
    ):
        done = run(*command)
        assert done.exit_code == 0, done.output
        assert "warning PREFLIGHT-021" in done.output, command


@pytest.mark.rule("PREFLIGHT-020")
def test_an_adapter_is_one_finding_and_not_one_for_each_tensor(qwen, check, tmp_path):
    folder = qwen()
    tensors = load_file(folder / "model.safetensors")
    lora = {
        f"base_model.model.{name.removesuffix('.weight')}.lora_{side}.weight": np.ones((2, 2), np.float32)
        for name in tensors
        if name.endswith("proj.weight")
        for side in "AB"
    }
    save_file(tensors | lora, tmp_path / "m.safetensors")
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    for path in (tmp_path / "m.safetensors", folder):
        checked = check(path)
        assert (checked.exit_code, len(checked.report["findings"])) == (3, 1)
        assert ("merge_and_unload" if path.is_file() else "apr-train merge") in checked.finding("PREFLIGHT-020")
    assert run("import", folder, "-o", tmp_path / "m.apr").exit_code != 0
    assert not (tmp_path / "m.apr").exists()
    for command in ("inspect", "validate"):  # they look at files as they are
        done = run(command, folder)
        assert (done.exit_code, "warning PREFLIGHT-020" in done.output) == (0, True)


@pytest.mark.rule("PREFLIGHT-006")
def test_weights_of_a_type_that_cannot_be_loaded_are_a_valid_file(qwen, check):
    folder = qwen()
    raw = (folder / "model.safetensors").read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    shape = header["model.norm.weight"]["shape"]
    header["model.norm.weight"] |= {"dtype": "F8_E8M0", "shape": [4 * shape[0]]}
    written = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(len(written).to_bytes(8, "little") + written + raw[8 + length :])
    done = run("validate", folder, "--data")
    assert (done.exit_code, "valid safetensors" in done.output) == (0, True)
    assert json.loads(run("inspect", folder, "--json").stdout)["dtypes"]["F8_E8M0"] == 1
    assert check(folder).exit_code == 3
    assert "F8_E8M0" in check(folder).finding("PREFLIGHT-006")


@pytest.fixture
def codebert(roberta_folder, tmp_path):
    """The layout of CodeBERT on the Hub: vocab.json and merges.txt, special tokens as plain text."""
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(vocab_size=96, special_tokens=special, initial_alphabet=list("abcdef "), show_progress=False)
    tokenizer.train_from_iterator(["def f(x): return x"] * 9, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    folder = tmp_path / "codebert"
    transformers.RobertaForMaskedLM.from_pretrained(roberta_folder("RobertaForMaskedLM")).save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in model["merges"]))
    names = {"bos": "<s>", "eos": "</s>", "unk": "<unk>", "sep": "</s>", "pad": "<pad>", "cls": "<s>", "mask": "<mask>"}
    (folder / "special_tokens_map.json").write_text(json.dumps({f"{role}_token": token for role, token in names.items()}))
    return folder


def test_an_encoder_in_the_layout_of_codebert_is_ready_and_keeps_its_tokenizer(codebert, check, tmp_path):
    checked = check(codebert)
    assert checked.exit_code == 0, checked.text
    assert not checked.ids("warning") & {"PREFLIGHT-017", "PREFLIGHT-018"}
    assert run("import", codebert, "-o", tmp_path / "m.apr").exit_code == 0
    assert run("export", tmp_path / "m.apr", "-o", tmp_path / "out").exit_code == 0
    back = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "out" / "tokenizer.json"))
    theirs = transformers.RobertaTokenizer.from_pretrained(codebert)
    text = "def f(x): return x"
    assert back(text)["input_ids"] == theirs(text)["input_ids"]


@pytest.mark.rule("PREFLIGHT-018")
def test_a_sentencepiece_model_in_the_folder_is_named(codebert, check):
    for name in ("vocab.json", "merges.txt"):
        (codebert / name).unlink()
    (codebert / "tokenizer.model").write_bytes(b"\n\x0e")
    said = check(codebert).finding("PREFLIGHT-018")
    assert "tokenizer.model" in said
    assert "AutoTokenizer" in said
