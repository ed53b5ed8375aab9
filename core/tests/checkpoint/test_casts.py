import numpy as np
import pytest
import torch
from apr_train.checkpoint.casts import cast_pieces
from apr_train.checkpoint.checkpoint import TensorView
from apr_train.errors import FormatError

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def bits(tensor):
    return tensor.view(torch.int16).numpy().view(np.uint16) if tensor.dtype is torch.bfloat16 else tensor.numpy()


def all_halves():
    """Every finite bit pattern of a half, and midpoints between neighbours that decide on rounding."""
    values = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(torch.float16).double()
    finite = values[torch.isfinite(values)]
    return torch.cat([finite, finite * (1 + 2.0**-12), finite * (1 + 2.0**-9)])


@pytest.mark.parametrize("source", DTYPES)
@pytest.mark.parametrize("target", DTYPES)
def test_casts_round_as_torch_does(source, target):
    values = all_halves().clamp(-60000, 60000).to(DTYPES[source])
    found = np.concatenate(list(cast_pieces(TensorView(source, bits(values)), target, path="p", name="n")))
    expected = values.to(torch.float32).to(DTYPES[target]) if target == "BF16" else values.to(DTYPES[target])
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
