"""A conversion around its writing: the source opened and judged before, and what was written told as data afterwards."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from attrs import field, frozen

from apr_train.artifact.convert import Conversion, Move, keeps_values, plan_conversion
from apr_train.artifact.merge import merged_run
from apr_train.checkpoint.apr import AprReader, ShardedReader
from apr_train.checkpoint.header import RopeRows
from apr_train.checkpoint.open import open_checkpoint
from apr_train.checkpoint.reference import KEY as REFERENCE
from apr_train.errors import Finding
from apr_train.family.registry import Registry
from apr_train.run.progress import Bar


@contextmanager
def opened_conversion(
    source: Path,
    *,
    arch: str | None,
    rope_layout: RopeRows | None,
    verify: bool,
    warn: Callable[[Iterable[Finding]], None],
    bar: Bar,
) -> Iterator[Conversion]:
    """Open a checkpoint, or what a run's adapter makes of its base, and decide how it is converted.

    Args:
        source: the checkpoint.
        arch: family by name; None: exactly one installed family must claim the file.
        rope_layout: the user's word on the order of the rows of q and k.
        verify: whether the checksum of an .apr is checked.
        warn: told of findings that are no errors.
        bar: how progress is shown.

    Raises:
        FormatError: the file is damaged.
        PreflightError: for every fault of its header.
    """
    merged = merged_run(source, verify=verify)
    with merged or open_checkpoint(source, verify=verify, rope_layout=rope_layout) as checkpoint:
        warn(checkpoint.header.findings)
        conversion = plan_conversion(checkpoint, Registry.discover(), arch=arch)
        warn(conversion.warnings)
        if isinstance(checkpoint, AprReader | ShardedReader):  # here, with a bar of its own: the first read would do it
            total = sum(item.nbytes for item in conversion.header.tensors.values())
            with bar(f"checking {source.name}", total) as progress:
                checkpoint.verify_once(progress)
        yield conversion


@frozen(kw_only=True)
class Converted:
    """What a conversion wrote, and of everything that it did not write, why."""

    path: Path
    """The file, or the folder."""
    family: str
    dtypes: Mapping[str, int]
    """Type → tensors of it, by name."""
    tied: bool
    """Whether the head is the embedding matrix."""
    tie_reason: str
    reordered: int | None
    """Tensors whose rows of q and k changed places; None for an encoder, whose rows have one order."""
    left_out: Mapping[str, str] = field(repr=False)
    """Tensor of the source → why it is not written."""
    fresh: tuple[str, ...]
    """Parts that the source does not have; a training run initialises them."""
    keeps_reference: bool
    """False: the source's reference loss was left out, since it is not that of rounded weights."""
    tokenizer_notes: tuple[str, ...] | None = field(repr=False)
    """What was decided about the tokenizer; None: the source has none."""


def converted(conversion: Conversion, moves: Sequence[Move], path: Path) -> Converted:
    """What `moves` wrote to `path`."""
    header, plan = conversion.header, conversion.plan
    decoder = conversion.family.info.kind == "decoder"
    equal = {tied.checkpoint: "equal to the tensor that it is tied to" for tied in plan.duplicates}
    return Converted(
        path=path,
        family=conversion.family.name,
        dtypes=dict(sorted(Counter(move.dtype for move in moves).items())),
        tied=conversion.config.tie_word_embeddings,
        tie_reason=header.tie.reason,
        reordered=sum(move.reorders for move in moves) if decoder else None,
        left_out=equal | {ignored.checkpoint: ignored.reason for ignored in plan.ignored},
        fresh=tuple(sorted({entry.fresh_group for entry in plan.fresh if entry.fresh_group})),
        keeps_reference=REFERENCE not in header.extra or keeps_values(moves),
        tokenizer_notes=header.tokenizer.notes if header.tokenizer else None,
    )
