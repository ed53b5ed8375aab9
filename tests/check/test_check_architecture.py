"""The ARCH rules through `apr-train check` on real files."""

import json

import pytest
from apr_train.family import DecoderConfig

QWEN_ROWS, QWEN_STRINGS, BASELINE_ROWS = 151_936, 151_665, 50_257
QWEN_SHAPE = {"vocab_size": QWEN_ROWS, "hidden_size": 28, "num_hidden_layers": 1, "intermediate_size": 32, "head_dim": 2}

BASELINE = {
    "vocab_size": 50_257,
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "intermediate_size": 2816,
    "max_position_embeddings": 4096,
    "rope_theta": 10_000.0,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "attention_bias": False,
    "attention_output_bias": False,
    "mlp_bias": False,
    "hidden_act": "silu",
    "rope_scaling": None,
    "initializer_range": 0.02,
}


@pytest.mark.rule("FALSIFY-APR-PRETRAIN-ARCH-002")
def test_llama370m_from_scratch_is_the_baseline_field_for_field(check):
    checked = check("--arch", "llama370m")
    rest = {name: value for name, value in checked.report["config"].items() if name not in BASELINE}
    assert (checked.exit_code, checked.report["config"]) == (0, BASELINE | rest)
    llama = json.loads(json.dumps(DecoderConfig(**BASELINE).to_dict()))
    assert rest == {name: value for name, value in llama.items() if name not in BASELINE}


@pytest.mark.rule("FALSIFY-APR-PRETRAIN-ARCH-002")
def test_another_preset_is_not_the_baseline(check):
    assert check("--arch", "llama370m", "--preset", "tiny").report["config"] != BASELINE


@pytest.mark.rule("FALSIFY-APR-PRETRAIN-ARCH-003")
def test_config_comes_from_the_file_and_not_from_a_preset(build, check):
    config = build.config("qwen2", rope_theta=12_345.0, rms_norm_eps=3e-6, max_position_embeddings=77)
    assert check(build.apr("qwen2", config)).report["config"] == json.loads(json.dumps(config.to_dict()))


@pytest.mark.rule("FALSIFY-APR-PRETRAIN-ARCH-003")
@pytest.mark.parametrize(
    ("key", "field"),
    [
        ("vocab_size", "vocab_size"),
        ("hidden_size", "hidden_size"),
        ("num_heads", "num_attention_heads"),
        ("num_kv_heads", "num_key_value_heads"),
        ("intermediate_size", "intermediate_size"),
        ("num_layers", "num_hidden_layers"),
        ("max_position_embeddings", "max_position_embeddings"),
        ("rope_theta", "rope_theta"),
        ("rms_norm_eps", "rms_norm_eps"),
    ],
)
def test_missing_field_is_an_error_that_names_it(build, check, key, field):
    checked = check(build.apr("qwen2", drop=(key,)))
    assert checked.exit_code == 3
    assert f"[{field}]" in checked.finding("FALSIFY-APR-PRETRAIN-ARCH-003")


@pytest.mark.rule("FALSIFY-APR-PRETRAIN-ARCH-003")
def test_tie_that_the_metadata_leaves_out_is_derived_and_said(build, check):
    checked = check(build.apr("qwen2", drop=("tie_word_embeddings",)))
    assert checked.exit_code == 0
    assert checked.report["facts"]["tie"] == {"value": True, "reason": "lm_head absent"}
    assert "lm_head absent" in checked.text


@pytest.mark.rule("FALSIFY-APR-PRETRAIN-ARCH-003")
def test_tie_that_only_the_bytes_can_tell_is_decided_at_load(build, check):
    config = build.config("qwen2")
    path = build.apr(
        "qwen2", drop=("tie_word_embeddings",), tensors={"lm_head.weight": (config.vocab_size, config.hidden_size)}
    )
    checked = check(path)
    assert checked.exit_code == 0
    assert "tie decided at load" in checked.text


@pytest.fixture
def qwen_shaped(build):
    return build.apr("qwen2", build.config("qwen2", **QWEN_SHAPE))


@pytest.mark.rule("FALSIFY-APR-PRETRAIN-ARCH-005", "FALSIFY-APR-PRETRAIN-ARCH-009")
def test_qwen_tokenizer_passes_with_a_qwen_shaped_file(qwen_shaped, check, tokenizer_file):
    checked = check(qwen_shaped, "--tokenizer", tokenizer_file(QWEN_STRINGS))
    assert (checked.exit_code, checked.report["findings"]) == (0, [])
    assert "151,665" in checked.text
    assert "151,936" in checked.text


@pytest.mark.rule("FALSIFY-APR-PRETRAIN-ARCH-005", "FALSIFY-APR-PRETRAIN-ARCH-009")
def test_tokenizer_inside_the_file_passes_too(build, check, spec):
    config = build.config("qwen2", **QWEN_SHAPE)
    checked = check(build.apr("qwen2", config, tokenizer=spec(QWEN_STRINGS)))
    assert (checked.exit_code, checked.report["facts"]["tokenizer"]["size"]) == (0, QWEN_STRINGS)


@pytest.mark.rule("FALSIFY-APR-PRETRAIN-ARCH-005", "FALSIFY-APR-PRETRAIN-ARCH-010")
def test_qwen_tokenizer_fails_with_a_smaller_file(build, check, tokenizer_file):
    path = build.apr("qwen2", build.config("qwen2", **{**QWEN_SHAPE, "vocab_size": BASELINE_ROWS}))
    checked = check(path, "--tokenizer", tokenizer_file(QWEN_STRINGS))
    message = checked.finding("FALSIFY-APR-PRETRAIN-ARCH-010")
    assert checked.exit_code == 3
    assert "151665" in message
    assert "50257" in message


@pytest.mark.rule("FALSIFY-APR-PRETRAIN-ARCH-006")
def test_qwen_tokenizer_fails_with_the_llama370m_target_and_names_both_sizes(check, tokenizer_file):
    checked = check("--arch", "llama370m", "--tokenizer", tokenizer_file(QWEN_STRINGS))
    message = checked.finding("FALSIFY-APR-PRETRAIN-ARCH-006")
    assert checked.exit_code == 3
    assert "151665" in message
    assert "50257" in message


@pytest.mark.rule("FALSIFY-APR-PRETRAIN-ARCH-006", "FALSIFY-APR-PRETRAIN-ARCH-010")
def test_tokenizer_of_exactly_the_target_passes(check, tokenizer_file):
    assert check("--arch", "llama370m", "--tokenizer", tokenizer_file(BASELINE_ROWS)).report["findings"] == []


@pytest.mark.rule("FALSIFY-APR-PRETRAIN-ARCH-009")
def test_one_string_more_than_rows_is_out_of_bounds(qwen_shaped, check, tokenizer_file):
    assert check(qwen_shaped, "--tokenizer", tokenizer_file(QWEN_ROWS)).exit_code == 0
    checked = check(qwen_shaped, "--tokenizer", tokenizer_file(QWEN_ROWS + 1))
    assert "151937" in checked.finding("FALSIFY-APR-PRETRAIN-ARCH-010")


@pytest.mark.rule("FALSIFY-APR-PRETRAIN-ARCH-010")
def test_from_scratch_fewer_strings_than_rows_fail_too(check, tokenizer_file):
    checked = check("--arch", "llama370m", "--tokenizer", tokenizer_file(BASELINE_ROWS - 1))
    message = checked.finding("FALSIFY-APR-PRETRAIN-ARCH-010")
    assert "50256" in message
    assert "--vocab-size 50256" in message


@pytest.mark.rule("FALSIFY-APR-PRETRAIN-ARCH-010")
def test_vocab_size_chooses_another_target(check, tokenizer_file):
    arguments = ("--arch", "llama370m", "--vocab-size", QWEN_STRINGS, "--tokenizer", tokenizer_file(QWEN_STRINGS))
    assert check(*arguments).exit_code == 0


@pytest.mark.rule("FALSIFY-APR-PRETRAIN-ARCH-007")
@pytest.mark.parametrize("arguments", [("--arch", "qwen2"), ("--arch", "codebert", "--objective", "causal-lm")])
@pytest.mark.parametrize("class_name", ["RobertaModel", "RobertaForMaskedLM"])
def test_encoder_is_refused_by_the_causal_trainer(roberta_folder, import_folder, check, class_name, arguments):
    folder = roberta_folder(class_name)
    for path in (folder, import_folder(folder)):
        checked = check(path, *arguments)
        message = checked.finding("FALSIFY-APR-PRETRAIN-ARCH-007")
        assert checked.exit_code == 3
        for word in ("FALSIFY-APR-PRETRAIN-ARCH-007", "Encoder", "decoder-only", class_name):
            assert word in message
            assert word in checked.text


@pytest.mark.rule("FALSIFY-APR-PRETRAIN-ARCH-007")
def test_encoder_is_refused_without_its_plugin_installed(roberta_folder, check, monkeypatch):
    monkeypatch.setenv("APR_TRAIN_PLUGINS", "apr-train-qwen2,apr-train-llama370m")
    for arguments in ((), ("--arch", "qwen2"), ("--arch", "codebert")):
        checked = check(roberta_folder("RobertaModel"), *arguments)
        assert checked.exit_code == 3
        assert "RobertaModel" in checked.finding("FALSIFY-APR-PRETRAIN-ARCH-007")


@pytest.mark.rule("FALSIFY-APR-PRETRAIN-ARCH-007")
def test_encoder_of_a_class_that_nobody_knows_is_refused_by_its_structure(roberta_folder, check):
    folder = roberta_folder("RobertaModel")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["NovelModel"], "model_type": "novel"}))
    assert "NovelModel" in check(folder, "--arch", "llama370m").finding("FALSIFY-APR-PRETRAIN-ARCH-007")


@pytest.mark.rule("FALSIFY-APR-PRETRAIN-ARCH-007")
def test_encoder_passes_where_it_belongs(roberta_folder, import_folder, check):
    for class_name in ("RobertaModel", "RobertaForMaskedLM"):
        folder = roberta_folder(class_name)
        for path in (folder, import_folder(folder)):
            checked = check(path)
            assert (checked.exit_code, checked.report["family"]) == (0, "codebert"), checked.text


def test_bare_encoder_says_what_is_ignored_and_what_is_fresh(roberta_folder, check):
    text = check(roberta_folder("RobertaModel")).text
    assert "pooler" in text
    assert "lm_head.dense.weight" in text
    assert "freshly initialised" in text


@pytest.mark.rule("FALSIFY-APR-PRETRAIN-ARCH-007")
@pytest.mark.parametrize("name", ["qwen2", "llama370m"])
@pytest.mark.parametrize("bare", [False, True])
def test_decoder_is_never_refused_as_an_encoder(build, check, name, bare):
    checked = check(build.apr(name, bare=bare))
    assert (checked.exit_code, checked.ids()) == (0, set()), checked.text
    assert "Encoder" not in check(build.apr(name, bare=bare), "--objective", "masked-lm").text


@pytest.mark.rule("FALSIFY-APR-PRETRAIN-ARCH-007")
def test_gguf_decoder_is_never_refused_as_an_encoder(build, check):
    assert check(build.gguf("qwen2")).exit_code == 0
