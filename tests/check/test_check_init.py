"""The INIT rules through `apr-train check` on real files: what is no checkpoint, and what is another one than it says."""

import json
import subprocess
import sys

import pytest

MISSING_FILE = "FALSIFY-APR-PRETRAIN-INIT-003"
BAD_FILE = "FALSIFY-APR-PRETRAIN-INIT-004"
MISMATCH = "FALSIFY-APR-PRETRAIN-INIT-005"
TENSOR_SET = "FALSIFY-APR-PRETRAIN-INIT-007"


@pytest.mark.rule("FALSIFY-APR-PRETRAIN-INIT-003")
def test_missing_file_is_a_finding(tmp_path, check):
    checked = check(tmp_path / "none.apr")
    assert checked.exit_code == 3
    assert "none.apr" in checked.finding(MISSING_FILE)
    assert checked.report["skipped"]


@pytest.mark.rule("FALSIFY-APR-PRETRAIN-INIT-003")
def test_path_that_cannot_be_looked_at_is_a_finding(tmp_path, check):
    assert "cannot be read" in check(tmp_path / ("x" * 300)).finding(MISSING_FILE)


@pytest.mark.rule("FALSIFY-APR-PRETRAIN-INIT-004")
@pytest.mark.parametrize("content", [b"", b"A", b"nothing like a checkpoint", b"APRN" + bytes(60), b"APR1" + bytes(60)])
def test_file_that_is_no_checkpoint_is_a_finding(tmp_path, check, content):
    path = tmp_path / "bad.apr"
    path.write_bytes(content)
    checked = check(path, "--arch", "qwen2")
    assert (checked.exit_code, checked.ids()) == (3, {BAD_FILE})


@pytest.mark.rule("FALSIFY-APR-PRETRAIN-INIT-004")
@pytest.mark.parametrize("kind", ["apr", "gguf", "safetensors"])
def test_truncated_file_is_a_finding(build, check, kind):
    if kind == "safetensors":
        path = build.safetensors({}, build.shapes("qwen2", build.config("qwen2"))) / "model.safetensors"
    else:
        path = getattr(build, kind)("qwen2")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) - 4096])
    assert check(path).ids() == {BAD_FILE}


@pytest.mark.rule("FALSIFY-APR-PRETRAIN-INIT-003", "FALSIFY-APR-PRETRAIN-INIT-004", "FALSIFY-APR-PRETRAIN-INIT-005")
@pytest.mark.parametrize("name", ["qwen2", "llama370m"])
def test_sound_file_has_no_finding(build, check, name):
    for path in (build.apr(name), build.gguf(name, rope_rows="adjacent" if name == "llama370m" else "split-half")):
        checked = check(path)
        assert (checked.exit_code, checked.ids()) == (0, set()), checked.text


@pytest.mark.rule("FALSIFY-APR-PRETRAIN-INIT-005")
def test_absent_metadata_names_every_field(build, check):
    shapes = build.shapes("qwen2", build.config("qwen2"))
    path = build.safetensors({}, shapes)
    checked = check(path, "--arch", "qwen2")
    assert checked.exit_code == 3
    text = json.dumps([item for item in checked.report["findings"] if item["id"] == MISMATCH])
    for name in ("architecture", "vocab_size", "hidden_size", "num_key_value_heads", "rope_theta"):
        assert name in text
    assert MISMATCH in check(path).ids()


@pytest.mark.rule("FALSIFY-APR-PRETRAIN-INIT-005")
@pytest.mark.parametrize(
    ("key", "field", "bogus", "found", "expected"),
    [
        ("hidden_size", "hidden_size", 224, "224", "112"),
        ("intermediate_size", "intermediate_size", 600, "600", "608"),
        ("num_layers", "num_hidden_layers", 3, "3", "2"),
        ("num_layers", "num_hidden_layers", 1, "1", "2"),
        ("num_kv_heads", "num_key_value_heads", 7, "56", "16"),
        ("num_layers", "num_hidden_layers", 10**9, "1000000000", "2"),
        ("rms_norm_eps", "rms_norm_eps", 0, "0", "> 0"),
    ],
)
def test_bogus_number_is_one_finding_with_both_values(build, check, key, field, bogus, found, expected):
    checked = check(build.apr("qwen2", metadata={key: bogus}))
    message = checked.finding(MISMATCH)
    assert checked.exit_code == 3
    for word in (field, found, expected):
        assert word in message


@pytest.mark.rule("FALSIFY-APR-PRETRAIN-INIT-005")
@pytest.mark.parametrize(
    ("key", "bogus", "expected"),
    [
        ("num_attention_heads", "fourteen", "an integer > 0"),
        ("num_hidden_layers", 2.5, "an integer > 0"),
        ("vocab_size", -1, "1024"),
        ("rope_theta", "hot", "a number > 0"),
        ("tie_word_embeddings", "no", "true or false"),
        ("hidden_size", [112], "an integer > 0"),
        ("intermediate_size", True, "an integer > 0"),
    ],
)
def test_bogus_value_of_a_config_json_is_one_finding(build, check, key, bogus, expected):
    config = build.config("qwen2")
    values = {**config.to_dict(), "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", key: bogus}
    checked = check(build.safetensors(values, build.shapes("qwen2", config)))
    message = checked.finding(MISMATCH)
    assert checked.exit_code == 3
    for word in (key, str(bogus), expected):
        assert word in message


@pytest.mark.rule("FALSIFY-APR-PRETRAIN-INIT-005")
def test_every_mismatched_field_is_listed(build, check):
    wrong = {"hidden_size": 224, "intermediate_size": 600, "vocab_size": 1000, "num_layers": 4, "rms_norm_eps": -1}
    checked = check(build.apr("qwen2", metadata=wrong))
    fields = {item["where"].partition("[")[2].rstrip("]") for item in checked.report["findings"] if item["id"] == MISMATCH}
    assert fields == {"hidden_size", "intermediate_size", "vocab_size", "num_hidden_layers", "rms_norm_eps"}


@pytest.mark.rule("FALSIFY-APR-PRETRAIN-INIT-005")
def test_vocabulary_of_the_metadata_and_of_the_rows_are_both_named(build, check):
    config = build.config("llama370m", vocab_size=50_257, hidden_size=16, head_dim=2, num_hidden_layers=1)
    rows = (50_304, 16)
    path = build.apr("llama370m", config, tensors={"model.embed_tokens.weight": rows, "lm_head.weight": rows})
    checked = check(path)
    message = checked.finding(MISMATCH)
    assert "50304" in message
    assert "50257" in message
    assert len(checked.report["explained"]) == 2
    assert checked.ids() == {MISMATCH}


@pytest.mark.rule("FALSIFY-APR-PRETRAIN-INIT-005")
@pytest.mark.parametrize(("name", "arch"), [("qwen2", "llama370m"), ("llama370m", "qwen2")])
def test_metadata_of_another_architecture_names_both(build, check, name, arch):
    checked = check(build.apr(name), "--arch", arch)
    found = [item for item in checked.report["findings"] if item["id"] == MISMATCH]
    assert checked.exit_code == 3
    assert {item["where"].partition("[")[2] for item in found} == {"architectures]", "model_type]"}
    assert all(item["expected"] and item["found"] for item in found)


@pytest.mark.rule("FALSIFY-APR-PRETRAIN-INIT-005")
def test_transposed_matrix_is_a_shape_finding(build, check):
    name = "model.layers.1.mlp.down_proj.weight"
    checked = check(build.apr("qwen2", tensors={name: (608, 112)}))
    message = checked.finding(MISMATCH)
    for word in (name, "[112, 608]", "[608, 112]"):
        assert word in message


@pytest.mark.rule("FALSIFY-APR-PRETRAIN-INIT-005")
def test_transposed_square_matrix_of_one_layer_leaves_no_trace_in_the_header(build, check):
    """What catches it is the comparison with the original's logits, and INIT-006 at step 0: the header cannot."""
    name = "model.layers.1.self_attn.o_proj.weight"
    assert build.shapes("qwen2", build.config("qwen2"))[name] == (112, 112)
    assert check(build.apr("qwen2", tensors={name: (112, 112)})).exit_code == 0


@pytest.mark.rule("FALSIFY-APR-PRETRAIN-INIT-007")
def test_file_without_its_72_biases_lists_all_of_them(build, check):
    config = build.config("qwen2", num_hidden_layers=24, hidden_size=28, intermediate_size=32, head_dim=2, vocab_size=64)
    shapes = build.shapes("qwen2", config)
    assert len(shapes) == 290
    biases = [name for name in shapes if name.endswith("_proj.bias")]
    assert check(build.apr("qwen2", config)).report["facts"]["tensors"]["used"] == 290
    checked = check(build.apr("qwen2", config, drop=biases))
    missing = [item["where"] for item in checked.report["findings"] if item["id"] == TENSOR_SET]
    assert len(missing) == 72
    assert all(any(f"[{name}]" in where for where in missing) for name in biases)
    assert "24 times, layers 0–23" in checked.text


@pytest.mark.rule("FALSIFY-APR-PRETRAIN-INIT-007")
def test_misspelt_tensor_is_reported_on_both_sides_with_the_closest_name(build, check):
    wrong, right = "model.layers.0.mlp.up_porj.weight", "model.layers.0.mlp.up_proj.weight"
    checked = check(build.apr("qwen2", tensors={wrong: (608, 112)}, drop=(right,)))
    found = {item["where"].partition("[")[2].rstrip("]"): item for item in checked.report["findings"]}
    assert right in found[wrong]["expected"]
    assert wrong in found[right]["found"]


@pytest.mark.rule("FALSIFY-APR-PRETRAIN-INIT-007")
def test_extra_tensor_is_an_error(build, check):
    checked = check(build.apr("llama370m", tensors={"model.layers.0.self_attn.q_norm.weight": (16,)}))
    assert checked.exit_code == 3
    assert "q_norm" in checked.finding(TENSOR_SET)


@pytest.mark.rule("FALSIFY-APR-PRETRAIN-INIT-007")
def test_everything_is_reported_at_once(build, check, tokenizer_file):
    path = build.apr(
        "qwen2",
        metadata={
            "vocab_size": 1000,
            "sliding_window": 16,
            "use_sliding_window": True,
            "max_window_layers": 0,
            "bos_token_id": 99_999,
            "odd_key": 1,
        },
        tensors={"model.extra.weight": (2, 2)},
        drop=("model.norm.weight",),
    )
    checked = check(path, "--tokenizer", tokenizer_file(4096), "--sequence-length", 10**6, "--objective", "masked-lm")
    assert checked.ids() == {
        MISMATCH,
        TENSOR_SET,
        "FALSIFY-APR-PRETRAIN-ARCH-010",
        "PREFLIGHT-002",
        "PREFLIGHT-003",
        "PREFLIGHT-009",
        "PREFLIGHT-010",
        "PREFLIGHT-011",
    }
    assert checked.ids("warning") == {"PREFLIGHT-004"}


def test_check_loads_neither_torch_nor_transformers(build):
    path = build.apr("qwen2")
    code = (
        "import sys\nfrom apr_train.cli import cli\n"
        f"try:\n    cli(['check', {str(path)!r}])\nexcept SystemExit as stop:\n    assert not stop.code, stop.code\n"
        "heavy = {'torch', 'transformers', 'tokenizers', 'xformers'} & set(sys.modules)\nassert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "ready: 0 errors, 1 warning" in done.stdout
