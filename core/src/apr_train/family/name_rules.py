"""The table of a name map: rules with `{layer}` and `{expert}` in the names and symbolic shapes, and what makes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from attrs import field, frozen

from apr_train.family.operations import AddOffset, Identity, Operation, Transpose, checkpoint_shape
from apr_train.family.sizes import Shape, total

LAYER, EXPERT = "{layer}", "{expert}"
EXPERTS = "num_experts"
"""The size that `{expert}` counts up to."""
Layers = Sequence[int] | Callable[[int], bool]
"""The layers that a rule is for: their numbers, or a function that says it of one."""


@frozen(kw_only=True)
class Part:
    """A part of a tensor along one axis, in symbols."""

    dim: int
    start: str
    length: str
    whole: str
    """Size of the whole tensor along the axis."""


@frozen
class Slot:
    """A part that is one expert of a stack: the axis in front, `[num_experts, …]`, which the part does not have."""


@frozen(kw_only=True)
class FillRule:
    """An edge between a tensor of the file and a parameter; make it with `rename`, `split`, `stack` and their like."""

    checkpoint: str
    """Name template in the file."""
    parameter: str
    """Name template in the model."""
    shape: Shape
    """Of the piece, as the model has it."""
    operation: Operation = field(factory=Identity)
    """Between the two pieces."""
    heads: str | None = None
    """The size that counts the heads whose rows are in adjacent pairs in the file; None: rows stay in order."""
    checkpoint_part: Part | Slot | None = None
    parameter_part: Part | Slot | None = None
    layers: Layers | None = None
    """The layers that the rule is for; None: all of them."""
    experts: tuple[int, ...] | None = None
    """The experts that the rule is for; None: all of them."""
    fresh_group: str | None = None
    """Tensors of one group may all be absent from a file; then they are freshly initialised, and the user is told."""

    @property
    def checkpoint_shape(self) -> Shape:
        """Of the whole tensor in the file, in symbols."""
        return _whole(checkpoint_shape(self.operation, self.shape), self.checkpoint_part)

    @property
    def parameter_shape(self) -> Shape:
        """Of the whole parameter, in symbols."""
        return _whole(self.shape, self.parameter_part)


def _whole(piece: Shape, part: Part | Slot | None) -> Shape:
    if part is None:
        return piece
    if isinstance(part, Slot):
        return (EXPERTS, *piece)
    return (*piece[: part.dim], part.whole, *piece[part.dim + 1 :])


@frozen(kw_only=True)
class TieRule:
    """A second name of a parameter that another rule fills; make it with `tie`."""

    checkpoint: str
    parameter: str
    shape: Shape

    @property
    def checkpoint_shape(self) -> Shape:
        """Of the tensor in the file, in symbols."""
        return self.shape


@frozen(kw_only=True)
class IgnoreRule:
    """A tensor that the model does not use; make it with `ignored`."""

    checkpoint: str
    reason: str
    """Why the model does not need the tensor."""


Rule = FillRule | TieRule | IgnoreRule
"""One line of a family's table."""


def rename(checkpoint: str, parameter: str, *shape: str, fresh_group: str | None = None, layers: Layers | None = None) -> Rule:
    """The same values under another name."""
    return FillRule(checkpoint=checkpoint, parameter=parameter, shape=shape, fresh_group=fresh_group, layers=layers)


def rope_rows(checkpoint: str, parameter: str, *shape: str, heads: str, layers: Layers | None = None) -> Rule:
    """Rows of q or k that are in adjacent-pair order in the file; `heads` is the size that counts the heads."""
    return FillRule(checkpoint=checkpoint, parameter=parameter, shape=shape, heads=heads, layers=layers)


def transpose(checkpoint: str, parameter: str, *shape: str, layers: Layers | None = None) -> Rule:
    """A matrix that lies in the file as its transpose; `shape` is the parameter's."""
    return apply(Transpose(), checkpoint, parameter, *shape, layers=layers)


def add_offset(checkpoint: str, parameter: str, *shape: str, offset: float, layers: Layers | None = None) -> Rule:
    """A tensor of the file that is the parameter plus `offset`."""
    return apply(AddOffset(offset), checkpoint, parameter, *shape, layers=layers)


def apply(operation: Operation, checkpoint: str, parameter: str, *shape: str, layers: Layers | None = None) -> Rule:
    """A tensor that an operation, which may be the family's own, makes into the parameter; `shape` is the parameter's."""
    return FillRule(checkpoint=checkpoint, parameter=parameter, shape=shape, operation=operation, layers=layers)


def split(
    checkpoint: str,
    parts: Sequence[tuple[str, str]],
    *others: str,
    dim: int = 0,
    operation: Operation | None = None,
    fresh_group: str | None = None,
    layers: Layers | None = None,
) -> list[Rule]:
    """A tensor of the file whose parts are parameters of their own: a fused qkv, gate and up in one.

    Args:
        checkpoint: name template of the fused tensor.
        parts: (parameter, size along the cut), in the file's order.
        others: the parameters' other sizes.
        dim: the axis of the file along which is cut.
        operation: between a part of the file and a parameter, which then has the cut along its first axis
            (`Transpose()` with `dim=1` for the `[hidden_size, 3*hidden_size]` of GPT-2's c_attn).
    """
    axis, cuts = (dim if operation is None else 0), _cuts([size for _, size in parts], dim)
    return [
        FillRule(
            checkpoint=checkpoint,
            parameter=parameter,
            shape=(*others[:axis], size, *others[axis:]),
            operation=operation or Identity(),
            checkpoint_part=cut,
            fresh_group=fresh_group,
            layers=layers,
        )
        for (parameter, size), cut in zip(parts, cuts, strict=True)
    ]


def _cuts(sizes: list[str], dim: int) -> list[Part]:
    """The parts of these sizes that lie behind each other along an axis."""
    whole = total(sizes)
    return [Part(dim=dim, start=total(sizes[:number]), length=size, whole=whole) for number, size in enumerate(sizes)]


def concatenate(
    parts: Sequence[tuple[str, str]],
    parameter: str,
    *others: str,
    dim: int = 0,
    operation: Operation | None = None,
    fresh_group: str | None = None,
    layers: Layers | None = None,
) -> list[Rule]:
    """A parameter whose parts are tensors of their own in the file.

    Args:
        parts: (name template in the file, size along the seam), in the parameter's order.
        parameter: name template of the joined parameter.
        others: the parameter's other sizes.
        dim: the axis of the parameter along which the parts are joined.
        operation: between a tensor of the file and a part of the parameter.
    """
    cuts = _cuts([size for _, size in parts], dim)
    return [
        FillRule(
            checkpoint=checkpoint,
            parameter=parameter,
            shape=(*others[:dim], size, *others[dim:]),
            operation=operation or Identity(),
            parameter_part=cut,
            fresh_group=fresh_group,
            layers=layers,
        )
        for (checkpoint, size), cut in zip(parts, cuts, strict=True)
    ]


def stack(
    checkpoint: str,
    parameter: str,
    *shape: str,
    operation: Operation | None = None,
    experts: Sequence[int] | None = None,
    layers: Layers | None = None,
) -> Rule:
    """A tensor of the file for each expert, and one parameter `[num_experts, *shape]`.

    `checkpoint` has `{expert}` in it; `experts` restricts the rule to some of them.
    """
    return FillRule(
        checkpoint=checkpoint,
        parameter=parameter,
        shape=shape,
        operation=operation or Identity(),
        parameter_part=Slot(),
        experts=None if experts is None else tuple(experts),
        layers=layers,
    )


def tie(checkpoint: str, parameter: str, *shape: str) -> Rule:
    """A second name of a parameter that another rule fills; in a file it may be absent, or an exact copy."""
    return TieRule(checkpoint=checkpoint, parameter=parameter, shape=shape)


def ignored(checkpoint: str, reason: str) -> Rule:
    """A tensor that files may hold and the model does not use; `reason` is told to the user."""
    return IgnoreRule(checkpoint=checkpoint, reason=reason)
