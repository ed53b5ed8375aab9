"""Name maps: there and back is the identity, parts are where they belong, and every defect is named."""

from functools import partial

import numpy as np
import pytest
import torch
from apr_train import rules as contract
from apr_train.errors import NameMapError, WrongMapError
from apr_train.family.decoder_config import DecoderConfig
from apr_train.family.name_map import NameMap, to_checkpoint, to_parameters
from apr_train.family.name_rules import (
    add_offset,
    apply,
    concatenate,
    ignored,
    rename,
    rope_rows,
    split,
    stack,
    tie,
    transpose,
)
from apr_train.family.operations import Transpose
from apr_train.family.rule_index import RuleIndex
from apr_train.family.sizes import config_sizes, evaluate, solved
from hypothesis import given
from hypothesis import strategies as st

SIZES = {"width": 3, "heads": 2, "head_dim": 4, "vocab": 5, "num_experts": 3}


class Conv:
    """An operation of a family's own, with the two mandatory members only."""

    def to_parameter(self, tensor):
        return tensor[::-1]

    def to_checkpoint(self, tensor):
        return tensor[::-1]


SHAPES = [("width",), ("vocab", "width"), ("heads*head_dim", "width"), ("width", "width")]


@st.composite
def name_maps(draw):
    """Any valid map: every operation and every kind of part, per layer or not, with ties and ignored tensors."""
    sizes = {**SIZES, "heads": draw(st.integers(1, 4)), "head_dim": 2 * draw(st.integers(1, 4))}
    rules = []
    for number in range(draw(st.integers(1, 8))):
        layer = "layers.{layer}." if draw(st.booleans()) else ""
        source, target = f"model.{layer}t{number}.weight", f"{layer}p{number}.weight"
        kind = draw(st.sampled_from(["rename", "rope", "tied", "bias", "transpose", "offset", "split", "join", "stack"]))
        if kind in ("transpose", "offset"):
            make = {"transpose": transpose, "offset": partial(add_offset, offset=1.0)}[kind]
            rules.append(make(source, target, "vocab", "width"))
        elif kind == "split":
            parts = [
                (f"{target}.{name}", size) for name, size in zip("ab", draw(st.permutations(["vocab", "3*width"])), strict=True)
            ]
            rules += split(source, parts, "width", dim=draw(st.integers(0, 1)))
        elif kind == "join":
            parts = [(f"{source}.{name}", size) for name, size in (("a", "vocab"), ("b", "2*heads*head_dim+width"))]
            rules += concatenate(parts, target, "width", dim=draw(st.integers(0, 1)))
        elif kind == "stack":
            rules.append(stack(f"{source}.{{expert}}.w", target, "vocab", "width"))
        elif kind in ("rope", "bias"):
            shape = ("heads*head_dim", "width") if kind == "rope" else ("heads*head_dim",)
            rules.append(rope_rows(source, target, *shape, heads="heads"))
        else:
            shape = draw(st.sampled_from(SHAPES))
            rules.append(rename(source, target, *shape))
            rules += [tie(f"copy.{layer}t{number}.weight", target, *shape)] if kind == "tied" else []
    rules += [ignored("pooler.weight", "not trained")] if draw(st.booleans()) else []
    return NameMap(rules=tuple(draw(st.permutations(rules))), sizes=sizes, num_layers=draw(st.integers(1, 3)))


def random_tensors(name_map, key, library):
    generator = np.random.default_rng(0)
    shapes = name_map.tensors if key == "checkpoint" else name_map.parameters
    arrays = {name: np.round(generator.standard_normal(shape) * 4096) / 4096 for name, shape in shapes.items()}
    return {name: torch.from_numpy(array) for name, array in arrays.items()} if library is torch else arrays


def same(left, right):
    return left.keys() == right.keys() and all(np.array_equal(np.asarray(left[name]), np.asarray(right[name])) for name in left)


@pytest.mark.parametrize("library", [np, torch], ids=["numpy", "torch"])
@given(name_map=name_maps())
def test_checkpoint_to_parameters_and_back_is_the_identity(library, name_map):
    tensors = random_tensors(name_map, "checkpoint", library)
    parameters = to_parameters(name_map, tensors)
    assert parameters.keys() == name_map.fills.keys()
    assert same(to_checkpoint(name_map, parameters), tensors)


@pytest.mark.parametrize("library", [np, torch], ids=["numpy", "torch"])
@given(name_map=name_maps())
def test_parameters_to_checkpoint_and_back_is_the_identity(library, name_map):
    parameters = random_tensors(name_map, "parameter", library)
    assert same(to_parameters(name_map, to_checkpoint(name_map, parameters)), parameters)


@given(name_map=name_maps())
def test_numpy_and_torch_agree(name_map):
    arrays = random_tensors(name_map, "checkpoint", np)
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    assert same(to_parameters(name_map, arrays), to_parameters(name_map, tensors))


@given(heads=st.integers(1, 5), half=st.integers(1, 5), width=st.integers(1, 3))
def test_row_permutation_brings_adjacent_pairs_to_split_halves(heads, half, width):
    sizes = {"heads": heads, "head_dim": 2 * half, "width": width}
    rule = rope_rows("q", "q", "heads*head_dim", "width", heads="heads")
    rows = np.arange(heads * 2 * half * width).reshape(heads * 2 * half, width)
    done = to_parameters(NameMap(rules=(rule,), sizes=sizes, num_layers=1), {"q": rows})["q"]
    for head in range(heads):
        start = head * 2 * half
        for pair in range(half):
            assert np.array_equal(done[start + pair], rows[start + 2 * pair])
            assert np.array_equal(done[start + half + pair], rows[start + 2 * pair + 1])


@given(name_map=name_maps())
def test_a_map_fits_the_parameters_that_it_fills(name_map):
    name_map.check_against(name_map.parameters)


@given(name_map=name_maps(), data=st.data())
def test_every_misfit_with_a_model_is_named(name_map, data):
    parameters = name_map.parameters
    name = data.draw(st.sampled_from(sorted(parameters)))
    fault = data.draw(st.sampled_from(["missing", "extra", "shape"]))
    if fault == "missing":
        del parameters[name]
        message = f"goes to {name}, which the model does not have"
    elif fault == "extra":
        parameters["unheard.of"] = (1,)
        message = "no rule fills unheard.of"
    else:
        parameters[name] = (*parameters[name], 7)
        message = f"{name}: the map says {list(parameters[name][:-1])}, the model has {list(parameters[name])}"
    with pytest.raises(NameMapError) as caught:
        name_map.check_against(parameters)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ([rename("a", "x", "width"), rename("b", "x", "width")], "x: two tensors for one place, a and b"),
        ([rename("a", "x", "width"), rename("a", "y", "width")], "a: two parameters for one place, x and y"),
        ([rename("a", "x", "width"), tie("a", "x", "width")], "a has 2 rules"),
        (
            [rename("l.{layer}", "l.{layer}", "width"), rename("l.1", "y", "width")],
            "l.1: two parameters for one place, l.1 and y",
        ),
        ([rename("l.{layer}", "x", "width")], "{layer} on one side only"),
        ([rename("l.{number}", "l.{number}", "width")], "{layer} and {expert} are the only placeholders"),
        ([rename("e.{expert}", "x", "width")], "{expert} on one side only; stack() makes one parameter of them"),
        ([stack("e", "x", "width")], "e → x: a stack has {expert} on the side that has a tensor for each expert"),
        ([stack("e.{expert}", "x.{expert}", "width")], "a stack has {expert} on the side that has a tensor for each expert"),
        ([rename("a", "x", "width*")], "a → x: not a size: 'width*' is no sum of products"),
        (split("a", [("x", "width")], "vocab", dim=1, operation=Conv()), "a part of size width does not lie along axis 1"),
        (
            [*concatenate([("b", "width"), ("c", "width")], "y"), tie("d", "y", "2*width")],
            "which is not one tensor of the file",
        ),
        ([rename("a", "x", "widht")], "unknown size widht (did you mean width?)"),
        ([tie("a", "x", "width")], "a is tied to x, which nothing fills"),
        ([rename("a", "x", "width"), tie("b", "x", "vocab")], "b is tied to x in another shape"),
        ([rope_rows("q", "q", "vocab", "width", heads="heads")], "q: row permutation of the wrong period: 5 rows are not 2"),
        ([rope_rows("q", "q", "width", heads="width")], "row permutation of the wrong period: 3 rows are not 3 heads of 4"),
    ],
)
def test_a_wrong_table_is_refused_by_name(rules, message):
    with pytest.raises(WrongMapError) as caught:
        NameMap(rules=tuple(rules), sizes=SIZES, num_layers=2)
    assert message in str(caught.value)


def test_an_odd_head_cannot_be_permuted():
    rule = rope_rows("q", "q", "heads*head_dim", heads="heads")
    with pytest.raises(NameMapError, match="wrong period"):
        NameMap(rules=(rule,), sizes={"heads": 2, "head_dim": 3}, num_layers=1)


def test_all_faults_of_a_table_are_told_at_once():
    rules = (rename("a", "x", "widht"), tie("b", "nowhere", "width"), rename("l.{layer}", "y", "width"))
    with pytest.raises(NameMapError) as caught:
        NameMap(rules=rules, sizes=SIZES, num_layers=1)
    assert [finding.problem for finding in caught.value.findings] == [
        "the name map is wrong: a → x: unknown size widht (did you mean width?)",
        "the name map is wrong: l.{layer} → y: {layer} on one side only",
        "the name map is wrong: b is tied to nowhere, which nothing fills",
    ]
    assert str(caught.value).splitlines() == [finding.problem for finding in caught.value.findings]


def test_sizes_are_the_integers_of_a_config():
    config = DecoderConfig(
        vocab_size=11,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=5,
        max_position_embeddings=7,
        rope_theta=1e4,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
    )
    sizes = config_sizes(config)
    assert sizes["head_dim"] == 4
    assert sizes["num_key_value_heads"] == 1
    assert (sizes["rotary_dim"], sizes["expert_size"], sizes["usable_positions"]) == (4, 5, 7)
    assert not {"tie_word_embeddings", "rope_theta", "hidden_act"} & sizes.keys()


class Halved:
    """A family's own operation, which changes the shape: pairs of columns are two rows in the file."""

    def to_parameter(self, tensor):
        return tensor.reshape(tensor.shape[0] // 2, -1)

    def to_checkpoint(self, tensor):
        return tensor.reshape(tensor.shape[0] * 2, -1)

    def checkpoint_shape(self, shape):
        rows, columns = shape
        return (f"2*{rows}", columns.removeprefix("2*")) if isinstance(rows, str) else (2 * rows, columns // 2)


def a_map(*rules, sizes=SIZES, layers=1):
    flat = [rule for item in rules for rule in (item if isinstance(item, list) else [item])]
    return NameMap(rules=tuple(flat), sizes=sizes, num_layers=layers)


def test_a_fused_matrix_is_cut_into_its_parameters():
    fused = np.arange(2 * 12).reshape(12, 2)
    name_map = a_map(split("qkv", [("q", "heads*head_dim"), ("k", "2"), ("v", "2")], "2"))
    found = to_parameters(name_map, {"qkv": fused})
    assert name_map.tensors == {"qkv": (12, 2)}
    assert same(found, {"q": fused[:8], "k": fused[8:10], "v": fused[10:]})


def test_a_fused_matrix_of_a_conv1d_is_cut_along_its_columns_and_transposed():
    """GPT-2's c_attn: `[hidden, 3*hidden]` in the file, three `[hidden, hidden]` as a linear layer has them."""
    fused = np.arange(27).reshape(3, 9)
    parts = [(name, "width") for name in "qkv"]
    name_map = a_map(split("c_attn", parts, "width", dim=1, operation=Transpose()))
    assert name_map.tensors == {"c_attn": (3, 9)}
    found = to_parameters(name_map, {"c_attn": fused})
    assert same(found, {"q": fused[:, :3].T, "k": fused[:, 3:6].T, "v": fused[:, 6:].T})


def test_a_stack_has_every_expert_at_its_number():
    files = {f"l.{layer}.e.{expert}.w": np.full((5, 3), 10 * layer + expert) for layer in (1, 2) for expert in range(3)}
    name_map = a_map(stack("l.{layer}.e.{expert}.w", "l.{layer}.w", "vocab", "width", layers=(1, 2)), layers=4)
    assert name_map.tensors == dict.fromkeys(files, (5, 3))
    found = to_parameters(name_map, files)
    assert {name: array[:, 0, 0].tolist() for name, array in found.items()} == {
        "l.1.w": [0 + 10, 11, 12],
        "l.2.w": [20, 21, 22],
    }


def test_layers_may_be_a_function():
    name_map = a_map(rename("l.{layer}", "l.{layer}", "width", layers=lambda layer: layer % 2 == 1), layers=5)
    assert list(name_map.fills) == ["l.1", "l.3"]


def test_parts_are_joined_along_the_axis_that_is_said():
    a, b = np.arange(6).reshape(2, 3), np.arange(10).reshape(2, 5)
    name_map = a_map(concatenate([("a", "width"), ("b", "vocab")], "x", "2", dim=1))
    assert same(to_parameters(name_map, {"a": a, "b": b}), {"x": np.concatenate([a, b], 1)})
    assert to_parameters(name_map, {"a": a}) == {}


def test_an_offset_is_what_a_file_has_more():
    (found,) = to_parameters(a_map(add_offset("n", "n", "width", offset=1.0)), {"n": np.array([1.5, 1.0, 0.0])}).values()
    assert found.tolist() == [0.5, 0.0, -1.0]


@pytest.mark.parametrize("library", [np, torch], ids=["numpy", "torch"])
def test_an_offset_keeps_the_tensors_float_type(library):
    tensor = np.ones(3, np.float16) if library is np else torch.ones(3, dtype=torch.bfloat16)
    name_map = a_map(add_offset("n", "n", "width", offset=1.0))
    assert to_parameters(name_map, {"n": tensor})["n"].dtype == tensor.dtype


def test_an_operation_of_a_familys_own_may_change_the_shape():
    name_map = a_map(apply(Halved(), "a", "x", "vocab", "2*width"))
    assert name_map.tensors == {"a": (10, 3)}
    assert name_map.parameters == {"x": (5, 6)}
    tensors = {"a": np.arange(30).reshape(10, 3)}
    assert same(to_checkpoint(name_map, to_parameters(name_map, tensors)), tensors)


def test_an_operation_of_a_familys_own_needs_two_methods_only():
    found = to_parameters(a_map(apply(Conv(), "a", "x", "width")), {"a": np.arange(3)})
    assert found["x"].tolist() == [2, 1, 0]


@pytest.mark.rule("NAMES-002")
@pytest.mark.parametrize(
    ("rules", "problem"),
    [
        (
            [stack("a.{expert}.w", "x", "width"), stack("b.{expert}.w", "x", "width", experts=[1])],
            "x, expert 1: two tensors for one place, a.1.w and b.1.w",
        ),
        (
            [*split("qkv", [("q", "vocab"), ("k", "width")]), *split("qkv", [("v", "vocab+width")])],
            "qkv, rows 0 to 4: two parameters for one place, q and v",
        ),
        (
            [*split("a", [("x", "width"), ("y", "width")], "2*width"), *split("a", [("z", "2*width")], "2*width", dim=1)],
            "a is cut along two axes",
        ),
        ([rename("a", "x", "width"), ignored("a", "no")], "a has 2 rules"),
    ],
)
def test_two_tensors_for_one_place_are_named_with_the_place(rules, problem):
    with pytest.raises(WrongMapError) as caught:
        a_map(*rules)
    (finding, *_) = [item for item in caught.value.findings if item.rule == contract.NAMES_002]
    assert finding.problem == f"the name map is wrong: {problem}"


@pytest.mark.rule("NAMES-003")
@pytest.mark.parametrize(
    ("rules", "problem"),
    [
        ([stack("a.{expert}.w", "x", "width", experts=[0, 2])], "x, expert 1: no rule is about this place"),
        ([stack("a.{expert}.w", "x", "width", experts=[0])], "x, experts 1 to 2: no rule is about this place"),
        (split("qkv", [("q", "vocab"), ("k", "width"), ("v", "width")])[:2], "qkv, rows 8 to 10: no rule is about this place"),
        (
            concatenate([("a", "vocab"), ("b", "width")], "x", "width", dim=1)[1:],
            "x, columns 0 to 4: no rule is about this place",
        ),
    ],
)
def test_a_place_that_nothing_fills_is_named(rules, problem):
    with pytest.raises(WrongMapError) as caught:
        a_map(*rules)
    (finding,) = caught.value.findings
    assert (finding.rule, finding.problem) == (contract.NAMES_003, f"the name map is wrong: {problem}")


def test_experts_without_a_number_of_experts_are_refused():
    with pytest.raises(WrongMapError, match=r"\{expert\} stands in a name, and the config has no num_experts"):
        a_map(stack("a.{expert}", "x", "width"), sizes={"width": 3, "num_experts": 0})


def test_a_parameter_is_fresh_as_a_whole_or_not_at_all():
    parts = [("a", "width"), ("b", "vocab")]
    a_map(concatenate(parts, "x", fresh_group="head"))
    mixed = concatenate(parts, "x", fresh_group="head")[:1] + concatenate(parts, "x")[1:]
    with pytest.raises(WrongMapError, match="different fresh groups"):
        a_map(*mixed)


@pytest.mark.parametrize(
    ("symbol", "number"), [("width", 3), ("3*width", 9), ("heads*head_dim+2*width", 14), ("7", 7), ("2*vocab + 1", 11)]
)
def test_a_size_is_a_sum_of_products(symbol, number):
    assert evaluate(symbol, SIZES) == number


def test_a_tensors_rules_are_found_whatever_its_layer_and_expert():
    rules = [
        *split("h.{layer}.qkv", [("q.{layer}", "width"), ("k.{layer}", "width")]),
        stack("h.{layer}.e.{expert}.w", "x.{layer}", "width"),
        rename("block.0.norm", "n", "width"),
    ]
    index = RuleIndex(rules)
    match = index.find("h.17.qkv")
    assert ([rule.parameter for rule in match.rules], match.layer, match.expert) == (["q.{layer}", "k.{layer}"], 17, None)
    match = index.find("h.5.e.63.w")
    assert (match.template, match.layer, match.expert) == ("h.{layer}.e.{expert}.w", 5, 63)
    assert index.find("block.0.norm").template == "block.0.norm"
    assert index.find("block.1.norm") is None
    assert index.find("h.qkv") is None


@pytest.mark.parametrize(
    ("symbol", "value", "found"),
    [
        ("width", 5, ("width", 5)),
        ("3*width", 72, ("width", 24)),
        ("2*width+width+1", 7, ("width", 2)),
        ("3*width", 71, None),
        ("width*width", 9, None),
        ("width*vocab", 9, None),
        ("width+vocab", 9, None),
        ("7", 7, None),
    ],
)
def test_a_size_of_one_name_can_be_solved_for_it(symbol, value, found):
    assert solved(symbol, value) == found
