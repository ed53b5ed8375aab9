"""What the tensors say of the metadata's numbers: sizes that are sums and products, experts, stacks."""

import math
from types import SimpleNamespace

import attrs
import pytest
from apr_train import rules
from apr_train.checkpoint.header import Header, TensorInfo, Tie
from apr_train.family.card import Layout
from apr_train.family.decoder_config import DecoderConfig
from apr_train.family.decoder_names import decoder_rules
from apr_train.family.name_map import NameMap
from apr_train.family.name_rules import split
from apr_train.preflight.tensor_rules import compare_sizes, tensor_report

CONFIG = DecoderConfig(
    vocab_size=11,
    hidden_size=24,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    intermediate_size=40,
    max_position_embeddings=64,
    rope_theta=1e4,
    rms_norm_eps=1e-5,
    tie_word_embeddings=False,
    num_experts=4,
    num_experts_per_tok=2,
    moe_intermediate_size=16,
    mlp_only_layers=(1,),
)


def fused(config, layout):
    """q, k and v in one tensor, and gate and up."""
    counts = {"q": "num_attention_heads", "k": "num_key_value_heads", "v": "num_key_value_heads"}
    qkv = [(f"layers.{{layer}}.self_attn.{name}_proj.weight", f"{count}*head_dim") for name, count in counts.items()]
    drop = [f"self_attn.{name}_proj" for name in counts]
    return decoder_rules(config, layout, drop=drop, add=[split("model.layers.{layer}.qkv.weight", qkv, "hidden_size")])


def report(real, said, *, layout=None, table=decoder_rules, drop=()):
    """The report on the file of one config whose metadata is another's."""
    layout = layout or Layout()
    shapes = NameMap.for_config(real, table(real, layout)).tensors
    tensors = {name: TensorInfo(name, "F32", shape, 4 * math.prod(shape)) for name, shape in shapes.items() if name not in drop}
    header = Header(
        path="f", format="safetensors", config=said.to_dict(), tensors=tensors, names=layout.names, rope_rows="split-half",
        tie=Tie(False, "metadata"),
    )  # fmt: skip
    family = SimpleNamespace(
        info=SimpleNamespace(layout_of=lambda header: layout, kind="decoder"),
        map_tensor_names=lambda config, layout: NameMap.for_config(config, table(config, layout)),
    )
    return tensor_report(header, family, said)


@pytest.mark.parametrize("layout", [Layout(), Layout(experts="stacked"), Layout(names="gguf")], ids=str)
@pytest.mark.parametrize(
    ("field", "value"),
    [("num_experts", 6), ("num_experts", 3), ("moe_intermediate_size", 20), ("intermediate_size", 44), ("hidden_size", 32)],
)
def test_one_wrong_number_is_one_finding_whatever_the_spelling(layout, field, value):
    found = report(CONFIG, attrs.evolve(CONFIG, **{field: value}), layout=layout)
    assert [(item.rule, item.field) for item in found.findings] == [(rules.INIT_005, field)]
    assert found.findings[0].expected.startswith(f"{getattr(CONFIG, field)}, as in the tensors")
    assert found.findings[0].found == f"{value} in the metadata"
    assert found.explained


def test_a_config_that_is_right_contradicts_nothing():
    for table in (decoder_rules, fused):
        assert report(CONFIG, CONFIG, table=table).findings == ()


def test_a_sum_that_contradicts_is_told_with_what_it_is_made_of():
    """Of a fused tensor only the sum is known: which factor is wrong, nothing says."""
    (finding,) = report(CONFIG, attrs.evolve(CONFIG, num_key_value_heads=1), table=fused).findings
    assert finding.field == "num_attention_heads*head_dim+num_key_value_heads*head_dim+num_key_value_heads*head_dim"
    assert finding.expected == "64, as in the tensors (model.layers.0.qkv.weight is [64, 24])"
    assert finding.found == "48 in the metadata (num_attention_heads 4 and head_dim 8 and num_key_value_heads 1)"


def test_a_sum_follows_from_the_factor_that_is_wrong():
    header = {"model.layers.0.qkv.weight": (64, 24), "a": (4,)}
    tensors = {name: TensorInfo(name, "F32", shape, 4) for name, shape in header.items()}
    table = [*fused(CONFIG, Layout()), *split("a", [("b", "num_attention_heads")])]
    config = {"num_attention_heads": 5, "num_key_value_heads": 2, "head_dim": 8, "hidden_size": 24}
    found = compare_sizes(Header(path="f", format="safetensors", config=config, tensors=tensors), table)
    assert [item.field for item in found.findings] == ["num_attention_heads"]


def test_a_literal_is_asked_nothing_and_a_multiple_of_a_size_says_the_size():
    tensors = {name: TensorInfo(name, "F32", shape, 4) for name, shape in {"a": (72, 1), "b": (25,)}.items()}
    table = [*split("a", [("x", "3*hidden_size")], "1"), *split("b", [("y", "hidden_size+1")])]
    right = Header(path="f", format="safetensors", config={"hidden_size": 24}, tensors=tensors)
    assert compare_sizes(right, table).findings == ()
    wrong = attrs.evolve(right, config={"hidden_size": 23})
    (finding,) = compare_sizes(wrong, table).findings
    assert (finding.field, finding.found) == ("hidden_size", "23 in the metadata")
    assert finding.expected == "24, as in the tensors (a is [72, 1])"


def test_an_expert_that_is_missing_is_named_and_explained_by_no_number():
    name = "model.layers.2.mlp.experts.1.down_proj.weight"
    (finding,) = report(CONFIG, CONFIG, drop=[name]).findings
    assert (finding.rule, finding.field) == (rules.INIT_007, name)


def test_numbers_of_the_config_that_the_file_does_not_say_count_too():
    """A family that takes an absent intermediate size for four times the width has said it all the same."""
    tensors = {"up": TensorInfo("up", "F32", (100, 24), 4)}
    header = Header(path="f", format="safetensors", config={"hidden_size": 24}, tensors=tensors)
    table = split("up", [("up", "intermediate_size")], "hidden_size")
    assert compare_sizes(header, table).findings == ()
    assert [item.field for item in compare_sizes(header, table, {"intermediate_size": 96}).findings] == ["intermediate_size"]
