"""Name maps: there and back is the identity, and every defect is named."""

import numpy as np
import pytest
import torch
from apr_train.errors import NameMapError
from apr_train.family.decoder_config import DecoderConfig
from apr_train.family.name_map import NameMap, config_sizes, ignored, rename, rope_rows, tie, to_checkpoint, to_parameters
from hypothesis import given
from hypothesis import strategies as st

SIZES = {"width": 3, "heads": 2, "head_dim": 4, "vocab": 5}
SHAPES = [("width",), ("vocab", "width"), ("heads*head_dim", "width"), ("width", "width")]


@st.composite
def name_maps(draw):
    """Any valid map: renames and row permutations, per layer or not, with ties and ignored tensors."""
    sizes = {**SIZES, "heads": draw(st.integers(1, 4)), "head_dim": 2 * draw(st.integers(1, 4))}
    rules = []
    for number in range(draw(st.integers(1, 8))):
        layer = "layers.{layer}." if draw(st.booleans()) else ""
        source, target = f"model.{layer}t{number}.weight", f"{layer}p{number}.weight"
        kind = draw(st.sampled_from(["rename", "rope", "tied", "bias"]))
        if kind in ("rope", "bias"):
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
    arrays = {getattr(entry, key): generator.standard_normal(entry.shape) for entry in name_map.fills.values()}
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
    name_map.check_against({name: entry.shape for name, entry in name_map.fills.items()})


@given(name_map=name_maps(), data=st.data())
def test_every_misfit_with_a_model_is_named(name_map, data):
    parameters = {name: entry.shape for name, entry in name_map.fills.items()}
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
        ([rename("a", "x", "width"), rename("b", "x", "width")], "x is filled by 2 rules"),
        ([rename("a", "x", "width"), rename("a", "y", "width")], "a has 2 rules"),
        ([rename("a", "x", "width"), tie("a", "x", "width")], "a has 2 rules"),
        ([rename("l.{layer}", "l.{layer}", "width"), rename("l.1", "y", "width")], "l.1 has 2 rules"),
        ([rename("l.{layer}", "x", "width")], "{layer} on one side only"),
        ([rename("l.{number}", "l.{number}", "width")], "{layer} is the only placeholder"),
        ([rename("a", "x", "widht")], "unknown size widht (did you mean width?)"),
        ([tie("a", "x", "width")], "a is tied to x, which nothing fills"),
        ([rename("a", "x", "width"), tie("b", "x", "vocab")], "b is tied to x in another shape"),
        ([rope_rows("q", "q", "vocab", "width", heads="heads")], "q: row permutation of the wrong period: 5 rows are not 2"),
        ([rope_rows("q", "q", "width", heads="width")], "row permutation of the wrong period: 3 rows are not 3 heads of 4"),
    ],
)
def test_a_wrong_table_is_refused_by_name(rules, message):
    with pytest.raises(NameMapError) as caught:
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
        "the name map is wrong: a: unknown size widht (did you mean width?)",
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
    assert not {"tie_word_embeddings", "rope_theta", "hidden_act"} & sizes.keys()
