import math
import struct

import numpy as np
import pytest
from apr_train.checkpoint.numbers import shortest_f32
from hypothesis import example, given
from hypothesis import strategies as st


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
@example(float(np.finfo(np.float32).max))
def test_the_spelling_reads_back_to_the_same_float32_and_is_numpys_shortest(value):
    found = shortest_f32(value)
    assert struct.pack("<f", found) == struct.pack("<f", value)
    assert found == float(str(np.float32(value)))


@pytest.mark.parametrize("value", [math.inf, -math.inf, 1e300, 3.4025000000000003e38])
def test_what_no_float32_holds_near_enough_is_left_alone_or_still_reads_back(value):
    assert shortest_f32(value) == pytest.approx(value, rel=1e-6)
