"""new-family: what is read from a config and from tensors, what is refused, and that no name of a file becomes code."""

import ast
import json
import math
import runpy
import tomllib

import numpy as np
import pytest
from apr_train.artifact.new_family.literals import literal
from apr_train.artifact.new_family.make import new_family
from apr_train.artifact.new_family.tiny import period
from apr_train.errors import AprTrainError
from apr_train.family.card import Layout
from apr_train.family.decoder_config import DecoderConfig
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
}
Q, KV, H, I, V = 32, 16, 32, 48, 96  # noqa: E741


def tensors(**changes):
    """Name → shape of a Llama's file; a change of None takes a tensor out."""
    found = {"model.embed_tokens.weight": (V, H), "model.norm.weight": (H,), "lm_head.weight": (V, H)}
    for layer in range(2):
        block = f"model.layers.{layer}."
        found |= {f"{block}{norm}_layernorm.weight": (H,) for norm in ("input", "post_attention")}
        rows = {"q": (Q, H), "k": (KV, H), "v": (KV, H), "o": (H, Q)}
        found |= {f"{block}self_attn.{name}_proj.weight": shape for name, shape in rows.items()}
        found |= {f"{block}mlp.{name}_proj.weight": (I, H) for name in ("gate", "up")}
        found |= {f"{block}mlp.down_proj.weight": (H, I)}
    return {name: shape for name, shape in (found | changes).items() if shape is not None}


def renamed(names, pairs):
    for old, new in pairs.items():
        names = {name.replace(old, new): shape for name, shape in names.items()}
    return names


@pytest.fixture
def make(tmp_path):
    """Write a checkpoint, or a config alone, and make a family of it."""

    def of(config=None, shapes=None, *, name="coderling"):
        source = tmp_path / "checkpoint"
        source.mkdir(exist_ok=True)
        path = source / "config.json"
        path.write_text(json.dumps(CONFIG if config is None else config), encoding="utf-8")
        if shapes is not None:
            arrays = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
            save_file(arrays, source / "model.safetensors")
        return new_family(name, origin=path if shapes is None else source, target=tmp_path / "made")

    return of


def module_of(made):
    (path,) = made.target.glob("apr_train_*.py")
    return runpy.run_path(str(path))


def problems(made):
    return [(finding.field, finding.severity) for finding in made.findings]


def left(made):
    return [finding.field for finding in made.findings if finding.severity == "error"]


def test_a_llama_leaves_nothing_to_do_and_has_its_own_numbers(make):
    made = make(shapes=tensors())
    module = module_of(made)
    family, presets = module["FAMILY"], module["PRESETS"]
    assert left(made) == []
    assert (family.hf_classes, family.model_type) == (("LlamaForCausalLM", "LlamaModel"), "llama")
    assert (family.config_keys, dict(family.fixed), dict(family.config_names)) == ((), {}, {})
    own = presets[family.default_preset]
    assert own.to_dict() == DecoderConfig(**{key: value for key, value in CONFIG.items() if key in own.to_dict()}).to_dict()


def test_a_preset_is_called_by_its_number_of_parameters(make):
    made = make(shapes=tensors())
    count = sum(math.prod(shape) for shape in tensors().values())
    assert list(module_of(made)["PRESETS"]) == [f"{round(count / 1000)}k", "tiny"]


def test_the_written_map_has_every_tensor_of_the_file(make):
    module = module_of(make(shapes=tensors()))
    config = module["PRESETS"][module["FAMILY"].default_preset]
    names = module["map_tensor_names"](config, Layout()).tensors
    assert dict(names) == tensors()


def test_without_a_source_it_is_a_llama_of_its_own_class(tmp_path):
    made = new_family("coderling", target=tmp_path / "made")
    module = module_of(made)
    assert made.findings == ()
    assert module["FAMILY"].hf_classes == ("CoderlingForCausalLM", "CoderlingModel")
    assert list(module["PRESETS"]) == ["tiny"]


def test_the_default_folder_is_beside_the_shell(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    new_family("coderling")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["apr-train-coderling"]


def test_an_empty_folder_is_filled_and_not_exchanged(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    inode = tmp_path.stat().st_ino
    new_family("coderling", target=tmp_path)
    assert tmp_path.stat().st_ino == inode
    assert (tmp_path / ".github" / "workflows" / "test.yml").is_file()


NORM = {"model.layers.0.self_attn.{}_norm.weight", "model.layers.1.self_attn.{}_norm.weight"}
STRUCTURES = {
    "qk_norm by head": ({name.format(part): (8,) for name in NORM for part in "qk"}, {"qk_norm": "head"}),
    "qk_norm of all": (
        {name.format(part): (rows,) for name in NORM for part, rows in (("q", Q), ("k", KV))},
        {"qk_norm": "projection"},
    ),
    "biases": (
        {f"model.layers.{n}.self_attn.{part}_proj.bias": (r,) for n in (0, 1) for part, r in (("q", Q), ("k", KV), ("v", KV))},
        {"attention_bias": True},
    ),
    "plain MLP": ({f"model.layers.{n}.mlp.gate_proj.weight": None for n in (0, 1)}, {"gated_mlp": False}),
    "parallel": ({f"model.layers.{n}.post_attention_layernorm.weight": None for n in (0, 1)}, {"parallel_residual": True}),
    "norms behind": (
        {f"model.layers.{n}.input_layernorm.weight": None for n in (0, 1)}
        | {f"model.layers.{n}.post_feedforward_layernorm.weight": (H,) for n in (0, 1)},
        {"norm_position": "post"},
    ),
    "norms on both sides": (
        {f"model.layers.{n}.{place}_feedforward_layernorm.weight": (H,) for n in (0, 1) for place in ("pre", "post")},
        {"norm_position": "both"},
    ),
    "a head of its own": ({}, {}),
}  # fmt: skip


@pytest.mark.parametrize("case", STRUCTURES)
def test_what_only_tensors_say_is_fixed(make, case):
    changes, fixed = STRUCTURES[case]
    made = make(shapes=tensors(**changes))
    assert dict(module_of(made)["FAMILY"].fixed) == fixed
    assert left(made) == []


def test_an_epsilon_of_either_norm_is_the_one_that_the_biases_say(make):
    config = {key: value for key, value in CONFIG.items() if key != "rms_norm_eps"} | {"norm_eps": 1e-5}
    made = make(config, tensors())
    module = module_of(made)
    assert dict(module["FAMILY"].config_names) == {"rms_norm_eps": "norm_eps"}
    assert module["PRESETS"]["tiny"].rms_norm_eps == 1e-5
    assert left(made) == []


@pytest.mark.parametrize("form", ["separate", "stacked"])
def test_experts_are_matched_one_by_one_and_stacked(make, form):
    shapes = {name: shape for name, shape in tensors().items() if "mlp" not in name}
    for block in ("model.layers.0.mlp.", "model.layers.1.mlp."):
        shapes[f"{block}gate.weight"] = (4, H)
        if form == "stacked":
            shapes |= {f"{block}experts.gate_up_proj": (4, 2 * I, H), f"{block}experts.down_proj": (4, H, I)}
        for expert in range(4 if form == "separate" else 0):
            shapes |= {f"{block}experts.{expert}.{part}.weight": (I, H) for part in ("w1", "w3")}
            shapes[f"{block}experts.{expert}.w2.weight"] = (H, I)
    made = make(CONFIG | {"num_experts": 4, "num_experts_per_tok": 2, "norm_topk_prob": True}, shapes)
    module = module_of(made)
    assert left(made) == []
    assert module["PRESETS"]["tiny"].num_experts == 4
    assert ("NAMES" in module) == (form == "separate")


def test_a_bias_follows_the_key_that_says_it(make):
    shapes = tensors(
        **{f"model.layers.{n}.self_attn.{part}_proj.bias": (r,) for n in (0, 1) for part, r in (("q", Q), ("k", KV), ("v", KV))}
    )
    made = make(CONFIG | {"use_qkv_bias": True}, shapes)
    family = module_of(made)["FAMILY"]
    assert (dict(family.fixed), dict(family.config_names)) == ({}, {"attention_bias": "use_qkv_bias"})
    assert left(made) == []


def test_a_base_model_without_a_head_is_told(make):
    shapes = {name.removeprefix("model."): shape for name, shape in tensors().items() if name != "lm_head.weight"}
    made = make(shapes=shapes)
    assert left(made) == []
    assert ("base_prefix", "warning") in problems(made)


def test_a_single_file_is_read_with_the_config_beside_it(make, tmp_path):
    make(shapes=tensors())
    made = new_family("second", origin=tmp_path / "checkpoint" / "model.safetensors", target=tmp_path / "other")
    assert left(made) == []
    assert module_of(made)["FAMILY"].hf_classes == ("LlamaForCausalLM", "LlamaModel")


def test_keys_with_commas_are_one_finding_each(make):
    assert sorted(left(make(CONFIG | {"a, b": 1, "c": 2}, tensors()))) == ["a, b", "c"]


def test_norms_with_biases_are_layer_norms(make):
    biases = {name.replace(".weight", ".bias"): (H,) for name in tensors() if "norm" in name}
    config = {key: value for key, value in CONFIG.items() if key != "rms_norm_eps"} | {"layer_norm_eps": 1e-5}
    made = make(config, tensors(**biases))
    assert dict(module_of(made)["FAMILY"].fixed) == {"norm": "layer"}
    assert left(made) == []


def test_other_names_of_modules_and_of_keys_are_tables(make):
    config = dict(CONFIG)
    config |= {"n_embd": config.pop("hidden_size"), "n_layer": config.pop("num_hidden_layers")}
    pairs = {"model.layers": "transformer.h", "model.": "transformer.", "embed_tokens": "wte", "o_proj": "dense"}
    made = make(config, renamed(tensors(), pairs))
    module = module_of(made)
    assert module["NAMES"] == {"layers": "h", "embed_tokens": "wte", "self_attn.o_proj": "self_attn.dense"}
    assert dict(module["FAMILY"].config_names) == {"hidden_size": "n_embd", "num_hidden_layers": "n_layer"}
    assert module["FAMILY"].base_prefix == "transformer."
    assert left(made) == []


def test_the_only_matrix_of_its_shape_is_taken_and_told(make):
    made = make(shapes=renamed(tensors(), {"mlp.down_proj": "mlp.contraction"}))
    assert module_of(made)["NAMES"] == {"mlp.down_proj": "mlp.contraction"}
    assert problems(made) == [("mlp.contraction", "warning"), ("hf_classes", "warning")][: len(made.findings)]


def test_two_matrices_of_one_shape_are_left_to_do(make):
    made = make(shapes=renamed(tensors(), {"mlp.gate_proj": "mlp.a", "mlp.up_proj": "mlp.b"}))
    names = [finding.field for finding in made.findings if "not used" in finding.problem]
    assert sorted(names) == ["model.layers.N.mlp.a.weight", "model.layers.N.mlp.b.weight"]
    assert {finding.severity for finding in made.findings if finding.field in names} == {"error"}


def test_a_fused_matrix_is_split_in_the_order_of_its_name(make):
    shapes = {
        name: shape for name, shape in tensors().items() if not any(part in name for part in ("q_proj", "k_proj", "v_proj"))
    }
    shapes |= {f"model.layers.{n}.self_attn.qkv_proj.weight": (Q + 2 * KV, H) for n in (0, 1)}
    made = make(shapes=shapes)
    module = module_of(made)
    config = module["PRESETS"][module["FAMILY"].default_preset]
    names = module["map_tensor_names"](config, Layout())
    assert dict(names.tensors) == shapes
    pieces = {edge.parameter: edge.checkpoint_part.start for edge in names.edges("model.layers.1.self_attn.qkv_proj.weight")}
    assert pieces == {f"layers.1.self_attn.{part}_proj.weight": start for part, start in (("q", 0), ("k", Q), ("v", Q + KV))}
    assert left(made) == []


def test_rows_of_q_k_and_v_side_by_side_are_not_guessed(make):
    shapes = {
        name: shape for name, shape in tensors().items() if not any(part in name for part in ("q_proj", "k_proj", "v_proj"))
    }
    shapes |= {f"model.layers.{n}.self_attn.query_key_value.weight": (Q + 2 * KV, H) for n in (0, 1)}
    assert "model.layers.N.self_attn.query_key_value.weight" in left(make(shapes=shapes))


def test_keys_that_the_core_knows_are_the_files_and_others_are_left_to_do(make):
    config = CONFIG | {"final_logit_softcapping": 30.0, "residual_multiplier": 0.5, "alibi": True, "frobnicate": 3}
    made = make(config, tensors())
    family = module_of(made)["FAMILY"]
    assert set(family.config_keys) == {"final_logit_softcapping", "residual_multiplier"}
    assert sorted(left(made)) == ["alibi", "frobnicate"]
    readme = (made.target / "README.md").read_text()
    assert all(f"- [ ] `{line}" in readme for line in ("PREFLIGHT-003: alibi", "PREFLIGHT-004: frobnicate"))


def test_a_pattern_of_layers_is_kept_in_small(make):
    kinds = ["sliding_attention", "sliding_attention", "full_attention"]
    shapes = {name.replace("layers.1.", f"layers.{n}."): shape for n in range(1, 9) for name, shape in tensors().items()}
    made = make(CONFIG | {"num_hidden_layers": 9, "layer_types": kinds * 3, "sliding_window": 16}, shapes)
    module = module_of(made)
    assert module["FAMILY"].layer_pattern == tuple(kinds)
    assert module["PRESETS"]["tiny"].layer_types == tuple(kinds)
    assert module["PRESETS"]["tiny"].num_key_value_heads * 2 == module["PRESETS"]["tiny"].num_attention_heads
    assert left(made) == []


def test_an_absent_activation_or_rotary_base_is_left_to_do(make):
    config = {key: value for key, value in CONFIG.items() if key not in ("hidden_act", "rope_theta")}
    assert sorted(left(make(config, tensors()))) == ["hidden_act", "rope_theta"]


def test_a_config_alone_says_that_no_tensors_were_looked_at(make):
    made = make()
    assert left(made) == []
    assert any("no tensors were looked at" in finding.problem for finding in made.findings)


NOT_NAMES = ("", "Coderling", "2fast", "my-family", "../evil", "a b", "é", "x" * 60, "class", "json", "match", "a\nb", "a;b")


@pytest.mark.parametrize("name", NOT_NAMES)
def test_a_name_that_cannot_be_is_refused_with_what_can(tmp_path, name):
    with pytest.raises(AprTrainError) as caught:
        new_family(name, target=tmp_path / "made")
    assert caught.value.finding.hint
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["file", "full", "link", "deep"])
def test_a_target_that_is_taken_stays_as_it_is(tmp_path, kind):
    target = tmp_path / "made"
    if kind == "file":
        target.write_text("mine")
    elif kind == "full":
        target.mkdir()
        (target / "mine").write_text("mine")
    elif kind == "link":
        target.symlink_to(tmp_path / "elsewhere")
    else:
        target = tmp_path / "no" / "such"
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(AprTrainError) as caught:
        new_family("coderling", target=target)
    assert caught.value.finding.hint
    assert sorted(tmp_path.rglob("*")) == before


REFUSED = {
    "encoder-decoder": ({"is_encoder_decoder": True}, "an encoder-decoder"),
    "encoder": ({"architectures": ["BertForMaskedLM"]}, "an encoder"),
    "several parts": ({"hidden_size": None, "text_config": {"hidden_size": 32}}, "several parts"),
    "no sizes": ({"vocab_size": None}, "does not say"),
    "layers": ({"num_hidden_layers": 10**9}, "cannot be"),
    "experts": ({"num_experts": 10**9}, "too many experts"),
    "text for a size": ({"hidden_size": "__import__('os')"}, "cannot be"),
    "negative": ({"num_attention_heads": -4}, "cannot be"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_no_decoder_can_be_made_of_is_one_message(make, tmp_path, case):
    changes, problem = REFUSED[case]
    with pytest.raises(AprTrainError) as caught:
        make(CONFIG | changes)
    assert problem in caught.value.finding.problem
    assert caught.value.finding.hint
    assert not (tmp_path / "made").exists()


def test_an_encoder_and_decoder_among_the_tensors_are_seen_too(make):
    with pytest.raises(AprTrainError, match="an encoder-decoder"):
        make(shapes={"encoder.block.0.w.weight": (4, 4), "decoder.block.0.w.weight": (4, 4)})


def test_a_folder_without_weights_says_to_pass_its_config(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    with pytest.raises(AprTrainError) as caught:
        new_family("coderling", origin=tmp_path, target=tmp_path / "made")
    assert str(tmp_path / "config.json") in caught.value.finding.hint


@pytest.mark.parametrize(
    "content", ["", "[]", "{", "null", '{"a": ' + "[" * 3000 + "]" * 3000 + "}", '{"vocab_size": 1' + "0" * 5000 + "}"]
)
def test_a_config_that_is_none_is_one_message(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(AprTrainError):
        new_family("coderling", origin=tmp_path / "config.json", target=tmp_path / "made")


EVIL = (
    '"; import os; os.mkdir("EVIL"); "',
    "'''\n\"\"\"\n__import__('os').mkdir('EVIL')\n",
    "../../EVIL",
    "{config.__class__}",
    "{{7*7}} `x` \n# heading\n[a](javascript:x) <script>",
    "\\",
    "\x1b[2J\x00\u202e",
    "class",
    "x" * 100_000,
)
CALLS = {
    "FamilyInfo", "DecoderConfig", "NameMapError", "read_config", "decoder_rules", "split", "NameMap.for_config", "add.append",
    "FUSED.items", "parts.items",
}  # fmt: skip


def check_harmless(made, tmp_path):
    """Nothing outside of the target, no call but those of the templates, and no name of a file outside of a code span."""
    assert {path.name for path in tmp_path.iterdir()} <= {"checkpoint", "made"}
    (module,) = made.target.glob("apr_train_*.py")
    tree = ast.parse(module.read_text())
    calls = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    assert calls <= CALLS
    assert [getattr(node, "module", None) for node in imports] == ["apr_train.family"]
    (test,) = made.target.glob("test_*.py")
    ast.parse(test.read_text())
    tomllib.loads((made.target / "pyproject.toml").read_text())
    readme = (made.target / "README.md").read_text()
    assert all(char.isprintable() or char == "\n" for char in readme)
    items = [line for line in readme.splitlines() if line.startswith("- ")]
    assert all(line.removeprefix("- ").removeprefix("[ ] ").count("`") == 2 and line.endswith("`") for line in items)
    assert all(path.stat().st_size < 300_000 for path in made.target.rglob("*") if path.is_file())
    assert all(text.isprintable() for finding in made.findings for text in (finding.field, finding.found, finding.problem))
    module_of(made)
    assert not (tmp_path / "EVIL").exists()


@pytest.mark.parametrize("number", range(len(EVIL)))
@pytest.mark.parametrize(
    "place", ["architectures", "model_type", "hidden_act", "key", "value", "rope_scaling", "layer_types", "nested"]
)
def test_texts_of_a_config_do_not_become_code(make, tmp_path, monkeypatch, place, number):
    monkeypatch.chdir(tmp_path)
    evil = EVIL[number]
    changes = {
        "architectures": {"architectures": [evil]},
        "model_type": {"model_type": evil},
        "hidden_act": {"hidden_act": evil},
        "key": {evil: 1.5},
        "value": {"rope_interleaved": evil, "qk_norm": evil, "norm": evil},
        "rope_scaling": {"rope_scaling": {"rope_type": evil, evil: evil}},
        "layer_types": {"layer_types": [evil, evil], "sliding_window": 8},
        "nested": {"attn_config": {evil: [{evil: evil}] * 3}, "frob": [[[[[evil]]]]]},
    }[place]
    check_harmless(make(CONFIG | changes, tensors()), tmp_path)


@pytest.mark.parametrize("evil", [text.replace("\0", "") for text in EVIL if len(text) < 1000])  # a NUL is refused before
def test_names_of_tensors_do_not_become_code(make, tmp_path, monkeypatch, evil):
    monkeypatch.chdir(tmp_path)
    names = tensors(**{f"{evil}.weight": (4,), f"model.layers.0.{evil}.weight": (H, I), f"model.layers.0.mlp.{evil}": (3,)})
    made = make(shapes=names)
    check_harmless(made, tmp_path)
    assert left(made)


def test_a_list_of_blocks_with_a_name_of_braces_stays_unmatched(make, tmp_path):
    made = make(shapes=renamed(tensors(), {"model.layers.": "model.{layer}'.\n."}))
    check_harmless(made, tmp_path)
    assert left(made)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.sampled_from(EVIL[:6]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
MORE_KEYS = (
    "rope_parameters", "use_sliding_window", "max_window_layers", "n_layer", "norm_eps", "sliding_window_pattern", "rotary_dim",
    "num_local_experts",
)  # fmt: skip
KEYS = st.sampled_from(sorted({*CONFIG, *MORE_KEYS, *DecoderConfig.__annotations__}))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.dictionaries(KEYS, ANYTHING, max_size=4))
def test_any_config_gives_a_package_or_one_message(tmp_path_factory, changes):
    folder = tmp_path_factory.mktemp("any")
    (folder / "checkpoint").mkdir()
    path = folder / "checkpoint" / "config.json"
    path.write_text(json.dumps(CONFIG | changes), encoding="utf-8")
    try:
        made = new_family("coderling", origin=path, target=folder / "made")
    except AprTrainError:
        return
    check_harmless(made, folder)


WORDS = """model layers 0 1 7 h self_attn attn mlp experts q_proj k_proj o_proj qkv_proj wte norm gate_proj up_proj down_proj
    gate gate_up_proj input_layernorm post_feedforward_layernorm q_norm lm_head embed_positions blk weight bias {layer}"""
PARTS = st.sampled_from(["", *WORDS.split()])
NAMES = st.lists(PARTS, min_size=1, max_size=6).map(".".join) | st.sampled_from(sorted(tensors()))
SHAPES = st.lists(st.sampled_from([1, 2, 4, 8, KV, Q, I, V]), max_size=3).map(tuple)


@settings(max_examples=150, deadline=None)
@given(changes=st.dictionaries(NAMES.filter(bool), SHAPES, max_size=8), whole=st.booleans())
def test_any_tensors_give_a_package_or_one_message(tmp_path_factory, changes, whole):
    folder = tmp_path_factory.mktemp("any")
    (folder / "checkpoint").mkdir()
    (folder / "checkpoint" / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    shapes = (tensors() if whole else {}) | changes
    save_file(
        {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}, folder / "checkpoint" / "model.safetensors"
    )
    try:
        made = new_family("coderling", origin=folder / "checkpoint", target=folder / "made")
    except AprTrainError:
        return
    check_harmless(made, folder)


@settings(max_examples=200, deadline=None)
@given(value=ANYTHING.filter(lambda value: value == value))
def test_a_literal_is_the_value(value):
    source = literal(value, column=100)
    again = eval(source, {"inf": math.inf, "nan": math.nan})
    assert repr(again) == repr(value)


@pytest.mark.parametrize(("items", "length"), [("abab", 2), ("aba", 2), ("aaaa", 1), ("abc", 3), ("", 1)])
def test_the_period_of_a_pattern(items, length):
    assert period(tuple(items)) == length
