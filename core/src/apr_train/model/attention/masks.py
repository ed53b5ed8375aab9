"""Which keys a query may see, as data; each backend turns it into what its kernels want. Torch-free at import."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from attrs import field, frozen

if TYPE_CHECKING:
    from torch import Tensor

MaskKind = Literal["causal", "bidirectional", "documents"]


@frozen
class Causal:
    """Query i sees keys 0 … offset + i; `offset` is the number of keys that a cache already held."""

    kind: ClassVar[MaskKind] = "causal"
    offset: int = 0


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
    """Causal inside each of the documents packed into a row, nothing across them."""

    kind: ClassVar[MaskKind] = "documents"
    ids: Tensor
    """`[batch, length]` int32: the document's number within its row; equal numbers stand side by side."""
    lengths: tuple[tuple[int, ...], ...] | None = None
    """Per row, the documents' lengths, adding up to the row's; spares a backend a copy from the device."""


@frozen(eq=False)
class PreparedMask:
    """A mask in one backend's own form, made once a batch so that not every layer makes it again."""

    kind: MaskKind
    value: Any = field(repr=False)


Mask = Causal | Bidirectional | Documents | PreparedMask
