"""The dtype ids of the tensor index, and how many bytes a tensor of each takes."""

from __future__ import annotations

import math

from attrs import frozen


@frozen
class DType:
    """One kind of element storage: blocks of `block` elements in `block_bytes` bytes, after `prefix` bytes."""

    name: str
    block: int
    block_bytes: int
    prefix: int = 0
    pads: bool = False
    """The last block may be incomplete in elements; it is padded in bytes."""

    @property
    def quantized(self) -> bool:
        """Whether elements are decoded to float32 when read."""
        return self.block > 1 or self.prefix > 0

    def nbytes(self, elements: int) -> int | None:
        """Bytes of a tensor with so many elements, or None when they are not a whole number of blocks."""
        if elements % self.block and not self.pads:
            return None
        return self.prefix + -(-elements // self.block) * self.block_bytes if elements else 0


_PLAIN = {
    0: ("F32", 4),
    1: ("F16", 2),
    3: ("F64", 8),
    4: ("I32", 4),
    5: ("I64", 8),
    6: ("I8", 1),
    7: ("U8", 1),
    30: ("BF16", 2),
}
_Q4 = DType("APR_Q4", 32, 18, pads=True)
_Q8 = DType("APR_Q8", 1, 1, prefix=4)

BY_ID: dict[int, DType] = {
    **{number: DType(name, 1, size) for number, (name, size) in _PLAIN.items()},
    12: DType("Q4_K", 256, 144),
    14: DType("Q6_K", 256, 210),
    128: _Q4,
    129: _Q8,
    8: _Q4,  # ids of older files, before GGML's own 8 and 9 were given room
    9: _Q8,
}
"""Every id that a reader understands."""

ID_OF: dict[str, int] = {dtype.name: number for number, dtype in reversed(BY_ID.items())} | {"APR_Q4": 128, "APR_Q8": 129}
"""The id that a writer uses for a dtype's name."""


NUMPY_DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",
    "I64": "<i8",
    "I32": "<i4",
    "I8": "i1",
    "U8": "u1",
}
"""The dtypes that numpy reads as they lie in the file; bf16 as its bits."""


def elements_of(shape: tuple[int, ...]) -> int:
    """The number of elements of a shape; 1 for a scalar."""
    return math.prod(shape)
