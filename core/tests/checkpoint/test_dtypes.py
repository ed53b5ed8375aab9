"""The table against torch, safetensors and gguf; casts against torch; the spelling of floats against numpy."""

import math
import struct

import gguf
import numpy as np
import pytest
import safetensors.torch
import torch
from apr_train.checkpoint.checkpoint import TensorView
from apr_train.checkpoint.dtypes import APR_DTYPES, APR_IDS, DTYPES, PLAIN, cast_pieces, shortest_f32
from apr_train.errors import FormatError
from apr_train.model.tensors import TORCH_DTYPES
from hypothesis import example, given
from hypothesis import strategies as st

FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def test_an_id_in_a_file_has_one_type_and_a_type_writes_an_id_that_reads_back():
    assert {name: APR_DTYPES[number].name for name, number in APR_IDS.items()} == {name: name for name in APR_IDS}
    assert {number: dtype.name for number, dtype in APR_DTYPES.items()} == {
        0: "F32", 1: "F16", 3: "F64", 4: "I32", 5: "I64", 6: "I8", 7: "U8", 30: "BF16", 12: "Q4_K", 14: "Q6_K",
        128: "APR_Q4", 8: "APR_Q4", 129: "APR_Q8", 9: "APR_Q8",
    }  # fmt: skip


def test_sizes_are_those_of_numpy_torch_safetensors_and_gguf():
    for name, dtype in PLAIN.items():
        assert np.dtype(dtype.numpy).itemsize == dtype.block_bytes == dtype.nbytes(1)
        assert name in safetensors.torch._TYPES or name.startswith("F8")
    for name, kind in TORCH_DTYPES.items():
        assert kind.itemsize == DTYPES[name].block_bytes
        assert safetensors.torch._TYPES[name] is kind
    ours = {name: (DTYPES[name].block, DTYPES[name].block_bytes) for name in DTYPES}
    theirs = {kind.name: sizes for kind, sizes in gguf.GGML_QUANT_SIZES.items()}
    shared = ours.keys() & theirs.keys()
    assert {"Q4_K", "Q6_K", "F32"} <= shared
    assert {name: ours[name] for name in shared} == {name: theirs[name] for name in shared}


@pytest.mark.parametrize(
    ("name", "elements", "fits", "nbytes"),
    [
        ("F32", 3, True, 12),
        ("Q4_K", 512, True, 288),
        ("Q4_K", 100, False, None),
        ("APR_Q4", 33, True, 36),
        ("APR_Q8", 3, True, 7),
        ("APR_Q8", 0, True, 0),
    ],
)
def test_bytes_of_blocks_and_prefixes(name, elements, fits, nbytes):
    assert DTYPES[name].fits(elements) == fits
    assert not fits or DTYPES[name].nbytes(elements) == nbytes


@pytest.mark.parametrize(
    ("name", "shape", "whole"),
    [
        ("Q4_K", (2, 512), True),
        ("Q4_K", (2, 128), False),
        ("Q4_K", (512,), False),
        ("APR_Q4", (3, 64), True),
        ("APR_Q4", (3, 33), False),
        ("APR_Q8", (2, 512), False),
    ],
)
def test_rows_can_be_reordered_where_each_is_blocks_of_its_own(name, shape, whole):
    assert DTYPES[name].has_whole_rows(shape) == whole


def bits(tensor):
    return tensor.view(torch.int16).numpy().view(np.uint16) if tensor.dtype is torch.bfloat16 else tensor.numpy()


def all_halves():
    """Every finite bit pattern of a half, and midpoints between neighbours that decide on rounding."""
    values = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(torch.float16).double()
    finite = values[torch.isfinite(values)]
    return torch.cat([finite, finite * (1 + 2.0**-12), finite * (1 + 2.0**-9)])


@pytest.mark.parametrize("source", FLOATS)
@pytest.mark.parametrize("target", FLOATS)
def test_casts_round_as_torch_does(source, target):
    values = all_halves().clamp(-60000, 60000).to(FLOATS[source])
    found = np.concatenate(list(cast_pieces(TensorView(source, bits(values)), target, path="p", name="n")))
    expected = values.to(torch.float32).to(FLOATS[target]) if target == "BF16" else values.to(FLOATS[target])
    assert found.tobytes() == bits(expected).tobytes()


def test_nan_and_infinity_stay_what_they_are():
    values = np.array([np.nan, -np.nan, np.inf, -np.inf], np.float32)
    found = np.concatenate(list(cast_pieces(TensorView("F32", values), "BF16", path="p", name="n")))
    back = torch.from_numpy(found.view(np.int16)).view(torch.bfloat16)
    assert torch.isnan(back[:2]).all()
    assert back[2:].tolist() == [float("inf"), float("-inf")]


@pytest.mark.parametrize(
    ("value", "source", "target"), [(70000.0, "F32", "F16"), (np.finfo(np.float32).max, "F32", "BF16"), (1e300, "F64", "F32")]
)
def test_a_value_that_does_not_fit_is_an_error_that_names_the_tensor(value, source, target):
    data = np.array([0.0, value], np.float64 if source == "F64" else np.float32)
    with pytest.raises(FormatError, match=rf"\[w\]: a value is too large for {target}"):
        list(cast_pieces(TensorView(source, data), target, path="p", name="w"))


def test_integers_are_refused():
    with pytest.raises(FormatError, match="not a float"):
        list(cast_pieces(TensorView("I32", np.zeros(2, np.int32)), "F32", path="p", name="w"))


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
@example(float(np.finfo(np.float32).max))
def test_the_spelling_reads_back_to_the_same_float32_and_is_numpys_shortest(value):
    found = shortest_f32(value)
    assert struct.pack("<f", found) == struct.pack("<f", value)
    assert found == float(str(np.float32(value)))


@pytest.mark.parametrize("value", [math.inf, -math.inf, 1e300, 3.4025000000000003e38])
def test_what_no_float32_holds_near_enough_is_left_alone_or_still_reads_back(value):
    assert shortest_f32(value) == pytest.approx(value, rel=1e-6)
