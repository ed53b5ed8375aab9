"""What `import`, `export` and `merge` share: how findings are told, and what was written."""

from __future__ import annotations

from apr_train.artifact.conversion import Converted
from apr_train.cli.output import say, tell


def say_unverified(*, verify: bool) -> None:
    """With `--no-verify`, say that nothing is checked."""
    if not verify:
        say("The checksum over the data is not checked (--no-verify).")


def describe_result(done: Converted) -> None:
    """Say what was written, and of everything that was not written, why."""
    kinds = ", ".join(f"{count} {name}" for name, count in done.dtypes.items())
    tell(f"{done.path}: {sum(done.dtypes.values())} tensors ({kinds}), family {done.family}")
    tell(f"head: {'tied' if done.tied else 'its own'} ({done.tie_reason})")
    if done.reordered is not None:
        tell(f"rows of q and k: split-half; {done.reordered} tensors were reordered")
    for name, reason in done.left_out.items():
        tell(f"left out: {name}: {reason}")
    for group in done.fresh:
        tell(f"not in the source: {group}; a training run initialises it")
    if not done.keeps_reference:
        tell("left out: the reference loss: it is not that of rounded weights; eval --reference measures it anew")
    if done.tokenizer_notes is None:
        tell("tokenizer: none in the source")
    for note in done.tokenizer_notes or ():
        tell(f"tokenizer: {note}")
