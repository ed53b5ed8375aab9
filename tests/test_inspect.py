"""`inspect` on every container: the same facts whatever the format, as text and as JSON."""

import json

import numpy as np
import pytest
from apr_train.cli import cli
from click.testing import CliRunner
from safetensors.numpy import save_file

CONFIG = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "vocab_size": 8,
    "hidden_size": 4,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 6,
    "max_position_embeddings": 16,
    "rope_parameters": {"rope_theta": 1000000.0, "rope_type": "default"},
    "rms_norm_eps": 1e-6,
}


@pytest.fixture
def folder(tmp_path):
    tensors = {"model.embed_tokens.weight": np.zeros((8, 4), np.float32), "model.norm.weight": np.zeros(4, np.float16)}
    tensors["model.layers.0.self_attn.q_proj.bias"] = np.zeros(4, np.float32)
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    return tmp_path


def run(*arguments, exit_code=0):
    result = CliRunner().invoke(cli, ["inspect", *map(str, arguments)])
    assert result.exit_code == exit_code, result.output
    return result.output


def test_json_has_every_fact(folder):
    found = json.loads(run(folder, "--json"))
    assert found["schema_version"] == 1
    assert (found["format"], found["class"], found["architecture"]) == ("safetensors", "Qwen2ForCausalLM", "qwen2")
    assert found["families"] == ["qwen2"]
    assert (found["parameters"], found["bytes"], found["tensor_count"]) == (40, 152, 3)
    assert found["dtypes"] == {"F16": 1, "F32": 2}
    assert found["tie"] == {"value": True, "reason": "lm_head absent"}
    assert found["rope_rows"] == "split-half"
    assert found["config"]["rope_theta"] == 1000000.0
    assert found["tokenizer"] is None
    assert "tensors" not in found


def test_tensors_are_listed_when_asked_for(folder):
    found = json.loads(run(folder, "--json", "--tensors"))
    assert {"name": "model.norm.weight", "dtype": "F16", "shape": [4], "bytes": 8} in found["tensors"]
    text = run(folder, "--tensors")
    assert "model.layers.0.self_attn.q_proj.bias  F32    [4]     16" in text


def test_text_names_the_family_the_head_and_the_config(folder):
    text = run(folder)
    assert "families         qwen2" in text
    assert "head             tied (lm_head absent)" in text
    assert "num_key_value_heads" in text


def test_a_file_that_nobody_claims_is_shown_all_the_same(folder):
    (folder / "config.json").unlink()
    text = run(folder)
    assert "none claims it" in text
    assert "not given" in text


def test_a_tokenizer_is_summarised(folder):
    tokenizer = {
        "model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": []},
        "added_tokens": [{"id": 5, "content": "<x>"}],
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    found = json.loads(run(folder, "--json"))["tokenizer"]
    assert (found["kind"], found["size"], found["added_tokens"]) == ("bpe", 6, 1)
    assert "size" in run(folder)


def test_a_damaged_file_is_one_message_without_a_traceback(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    text = run(folder, exit_code=1)
    assert text.startswith("Error: ")
    assert "truncated" in text
    assert len(text.splitlines()) == 1


def test_a_missing_file_names_the_rule(tmp_path):
    assert "FALSIFY-APR-PRETRAIN-INIT-003" in run(tmp_path / "absent.apr", exit_code=1)
