"""What `import` and `export` share: open, decide, and say what was done."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from apr_train.artifact.convert import Conversion, Move, keeps_values, plan_conversion
from apr_train.artifact.merge import merged_run
from apr_train.checkpoint.apr import AprReader, ShardedReader
from apr_train.checkpoint.header import RopeRows
from apr_train.checkpoint.open import open_checkpoint
from apr_train.checkpoint.reference import KEY as REFERENCE
from apr_train.cli.output import emit_findings, say, tell
from apr_train.family.registry import Registry
from apr_train.run.progress import progress_bar


@contextmanager
def prepared(source: Path, *, arch: str | None, rope_layout: RopeRows | None, verify: bool) -> Iterator[Conversion]:
    """Open a checkpoint and decide how it is converted; with `--no-verify`, say that nothing was checked."""
    if not verify:
        say("The checksum over the data is not checked (--no-verify).")
    merged = merged_run(source, verify=verify)
    with merged or open_checkpoint(source, verify=verify, rope_layout=rope_layout) as checkpoint:
        emit_findings(checkpoint.header.findings)
        conversion = plan_conversion(checkpoint, Registry.discover(), arch=arch)
        emit_findings(conversion.warnings)
        if isinstance(checkpoint, AprReader | ShardedReader):  # here, with a bar of its own: the first read would do it
            total = sum(item.nbytes for item in conversion.header.tensors.values())
            with progress_bar(f"checking {source.name}", total) as progress:
                checkpoint.verify_once(progress)
        yield conversion


def describe_result(conversion: Conversion, moves: Sequence[Move], output: Path) -> None:
    """Say what was written, and of everything that was not written, why."""
    header, plan = conversion.header, conversion.plan
    types = Counter(move.dtype for move in moves)
    kinds = ", ".join(f"{count} {name}" for name, count in sorted(types.items()))
    tell(f"{output}: {len(moves)} tensors ({kinds}), family {conversion.family.name}")
    tell(f"head: {'tied' if conversion.config.tie_word_embeddings else 'its own'} ({header.tie.reason})")
    if conversion.family.info.kind == "decoder":
        reordered = sum(move.reorders for move in moves)
        tell(f"rows of q and k: split-half; {reordered} tensors were reordered")
    for tied in plan.duplicates:
        tell(f"left out: {tied.checkpoint}: equal to the tensor that it is tied to")
    for ignored in plan.ignored:
        tell(f"left out: {ignored.checkpoint}: {ignored.reason}")
    for group in sorted({entry.fresh_group for entry in plan.fresh if entry.fresh_group}):
        tell(f"not in the source: {group}; a training run initialises it")
    if REFERENCE in header.extra and not keeps_values(moves):
        tell("left out: the reference loss: it is not that of rounded weights; eval --reference measures it anew")
    if header.tokenizer is None:
        tell("tokenizer: none in the source")
    for note in header.tokenizer.notes if header.tokenizer else ():
        tell(f"tokenizer: {note}")
