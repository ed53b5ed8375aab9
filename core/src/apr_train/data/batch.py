"""Rows of tokens as one batch of tensors, and the rows of a token file that batches are made of. Torch-free at import."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from attrs import evolve, field, frozen

from apr_train.checkpoint.dtypes import Array
from apr_train.data.protocols import TokenizerLike
from apr_train.run.objective_names import Packing

if TYPE_CHECKING:
    import torch
    from torch import Tensor

IGNORED = -100
"""Target of a position that is not learnt from; torch's cross entropy ignores it by default."""


@frozen(kw_only=True)
class Share:
    """The part of each batch that one of several processes has: rows that follow on one another, as many as any other's ± 1."""

    number: int = 0
    of: int = 1

    def rows(self, count: int) -> range:
        """Which of `count` rows."""
        return range(self.number * count // self.of, (self.number + 1) * count // self.of)


@frozen(kw_only=True)
class Batch:
    """Rows of token ids and what to predict at each position."""

    tokens: Tensor = field(repr=False)
    """`[batch, length]` int64: the model's input."""
    targets: Tensor = field(repr=False)
    """`[batch, length]` int64: what the model should say at that position, `IGNORED` where nothing. An objective that
    predicts the next token gives them shifted: `targets[:, j]` follows `tokens[:, j]`."""
    document_ids: Tensor | None = field(default=None, repr=False)
    """`[batch, length]` int32, counted from 0 in each row; only where causal attention stays inside documents."""
    document_lengths: tuple[tuple[int, ...], ...] | None = None
    """Per row, the lengths of its documents; they add up to the row's length. Given with `document_ids`."""
    positions: Tensor | None = field(default=None, repr=False)
    """`[batch, length]` int64, counted from 0 in each document; None: from 0 in each row."""
    keep: Tensor | None = field(default=None, repr=False)
    """`[batch, length]` bool, False at padding; None: there is no padding that attention must not see."""
    target_count: int
    """Number of positions that are learnt from."""
    source: str | None = None
    """In a validation, the source that all rows are of; None where it has no name."""

    @classmethod
    def from_arrays(
        cls,
        tokens: Array,
        targets: Array,
        *,
        document_ids: Array | None = None,
        document_lengths: tuple[tuple[int, ...], ...] | None = None,
        positions: Array | None = None,
        keep: Array | None = None,
    ) -> Batch:
        """A batch on the CPU that shares the memory of numpy arrays of the fields' shapes; counts the targets."""
        import torch

        return cls(
            tokens=torch.from_numpy(tokens),
            targets=torch.from_numpy(targets),
            document_ids=None if document_ids is None else torch.from_numpy(document_ids),
            document_lengths=document_lengths,
            positions=None if positions is None else torch.from_numpy(positions),
            keep=None if keep is None else torch.from_numpy(keep),
            target_count=int((targets != IGNORED).sum()),
        )

    @classmethod
    def joined(cls, parts: Sequence[Batch], order: Sequence[int]) -> Batch:
        """The rows of batches as one batch, in another order: `order[i]` is where row i of all parts together then stands."""
        if len(parts) == 1:
            return parts[0]
        import torch

        places = torch.tensor(order).argsort()
        keep = [item.keep for item in parts]
        filled = [torch.ones_like(item.tokens, dtype=torch.bool) if item.keep is None else item.keep for item in parts]
        lengths = [row for item in parts for row in item.document_lengths or ()]
        joined: dict[str, Any] = {
            name: torch.cat(tensors)[places]
            for name in ("tokens", "targets", "document_ids", "positions")
            if None not in (tensors := [getattr(item, name) for item in parts])
        }
        return cls(
            **joined,
            keep=None if all(item is None for item in keep) else torch.cat(filled)[places],
            document_lengths=tuple(lengths[place] for place in places.tolist()) if lengths else None,
            target_count=sum(item.target_count for item in parts),
        )

    def part(self, share: Share) -> Batch:
        """The rows of a share; where it has none, one row from which nothing is learnt, so that every process has a batch."""
        if share.of == 1:
            return self
        own = share.rows(len(self.tokens))
        rows = slice(own.start, own.stop) if own else slice(0, 1)
        cut: dict[str, Any] = {
            name: tensor[rows]
            for name in ("tokens", "targets", "document_ids", "positions", "keep")
            if (tensor := getattr(self, name)) is not None
        }
        if not own:
            cut["targets"] = cut["targets"].new_full(cut["targets"].shape, IGNORED)
        lengths = None if self.document_lengths is None else self.document_lengths[rows]
        return evolve(self, **cut, document_lengths=lengths, target_count=int((cut["targets"] != IGNORED).sum()))

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on a device."""
        import torch

        pinned = torch.device(device).type == "cuda"  # from other memory a copy is not made beside what the host does
        moved = {
            name: (tensor.pin_memory() if pinned and not tensor.is_cuda else tensor).to(device, non_blocking=True)
            for name in ("tokens", "targets", "document_ids", "positions", "keep")
            if (tensor := getattr(self, name)) is not None
        }
        return evolve(self, **moved)


class Rows(Protocol):
    """The rows of one token file, as an objective cuts them."""

    @property
    def told(self) -> str | None:
        """What a user should know of how documents came into these rows, before a run; None where there is nothing."""
        ...

    def __len__(self) -> int: ...

    def batch(self, places: Sequence[tuple[int, int]]) -> Batch:
        """The rows at (epoch, index); the epoch matters only where masks are dynamic."""
        ...


@frozen(kw_only=True)
class RowOptions:
    """How a token file is cut into rows; an objective reads what concerns it."""

    length: int
    """Tokens in a row."""
    document_mask: bool
    """Whether attention stays inside documents."""
    tokenizer: TokenizerLike
    """Gives the special tokens that the objective needs."""
    mask_probability: float
    """Share of the tokens to predict, of an objective that hides some."""
    seed: int
    """Seed of whatever is drawn at random."""
    partial: bool
    """Whether the last row may be short, its rest padding that is not learnt from."""
    packing: Packing = "concatenate"
    """How documents come into rows."""
