"""Which keys a query may see, as data; each backend turns it into what its kernels want. Torch-free at import."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from attrs import evolve, field, frozen, validators

from apr_train.errors import AttentionError
from apr_train.family.validate import positive_int

if TYPE_CHECKING:
    from torch import Tensor

MaskKind = Literal["causal", "bidirectional", "documents"]


@frozen
class Causal:
    """Query i sees keys up to offset + i: all of them, or the last `window`."""

    kind: ClassVar[MaskKind] = "causal"
    offset: int = 0
    """Keys that a cache already held."""
    window: int | None = field(default=None, validator=validators.optional(positive_int))
    """Keys that a query sees at most, its own included, as transformers' `sliding_window`; None: no limit."""


@frozen(eq=False)
class CausalAt:
    """One query a row, each at a place of its own in a `FixedCache`: it sees the keys up to its place, and no further.

    Only backends that say `serves_places` are given this mask.
    """

    kind: ClassVar[MaskKind] = "causal"
    places: Tensor
    """`[batch]` int64: how many keys of its row came before each query."""
    window: int | None = field(default=None, validator=validators.optional(positive_int))
    """Keys that a query sees at most, its own included; None: no limit."""


@frozen(eq=False)
class Bidirectional:
    """Every query sees every key that is a real token.

    A row without a single real token gives zeros, not NaN.
    """

    kind: ClassVar[MaskKind] = "bidirectional"
    keep: Tensor | None = None
    """`[batch, key length]` bool, True = real token; None = no padding."""


@frozen(eq=False)
class Documents:
    """Causal inside each of the documents packed into a row, nothing across them; with a window as in `Causal`."""

    kind: ClassVar[MaskKind] = "documents"
    ids: Tensor
    """`[batch, length]` int32: the document's number within its row; equal numbers stand side by side."""
    lengths: tuple[tuple[int, ...], ...] | None = None
    """Per row, the documents' lengths, adding up to the row's; spares a backend a copy from the device."""
    window: int | None = field(default=None, validator=validators.optional(positive_int))
    """Keys that a query sees at most, its own included; None: all of its document that came before."""


@frozen(eq=False)
class PreparedMask:
    """A mask in one backend's own form, made once a batch so that not every layer makes it again."""

    kind: MaskKind
    value: Any = field(repr=False)
    offset: int = 0
    """The offset of the mask that was prepared."""
    window: int | None = None
    """The window of the mask that was prepared."""


Mask = Causal | CausalAt | Bidirectional | Documents | PreparedMask


def document_sizes(ids: Tensor) -> Tensor:
    """Length of the document that each token is in, of the ids of `Documents`: `[batch, length]` int64."""
    numbers = ids.long()
    counts = numbers.new_zeros(numbers.shape).scatter_add(1, numbers, numbers.new_ones(()).expand_as(numbers))
    return counts.gather(1, numbers)


def windowed(mask: Mask, window: int | None) -> Mask:
    """Give a mask the window of a sliding layer; the narrower one stays where it has one already. None: the mask itself.

    Raises:
        AttentionError: for a mask that is not causal, or that was prepared already.
    """
    if window is None:
        return mask
    if not isinstance(mask, Causal | CausalAt | Documents):
        raise AttentionError(
            "no sliding window on this mask",
            where="attention",
            expected="Causal, CausalAt or Documents, not yet prepared",
            found=type(mask).__name__,
        )
    return evolve(mask, window=window if mask.window is None else min(window, mask.window))


def hiding_window(mask: Mask, query_length: int) -> int | None:
    """The window of a causal mask, or None if it hides nothing from that many queries: plain masks have faster kernels."""
    if isinstance(mask, Bidirectional | CausalAt) or mask.window is None:  # of CausalAt each row has another window
        return None
    offset = 0 if isinstance(mask, Documents) else mask.offset
    return mask.window if mask.window < offset + query_length else None
