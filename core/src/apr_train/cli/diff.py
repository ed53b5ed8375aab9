"""`apr-train diff`: two checkpoints side by side, metadata and tensors. Imports no torch."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from apr_train.cli.options import json_option, setting, verify_option
from apr_train.cli.output import emit_findings, emit_json, emit_table, say, tell
from apr_train.run.progress import progress_bar

if TYPE_CHECKING:
    from apr_train.artifact.diff import Field, TensorDiff
    from apr_train.checkpoint.header import RopeRows

SCHEMA_VERSION = 1
DIFFERENT, TROUBLE = 1, 2
"""Exit statuses, as diff(1) has them."""
_LONG = 60
_TITLES = {
    "architecture": "config",
    "tokenizer": "tokenizer",
    "files beside the weights": "companions",
    "about the files (does not count)": "about",
}
EPILOG = "Examples: apr-train diff model.gguf model.apr   ·   apr-train diff runs/a runs/b --tolerance 1e-6 --json"


@click.command("diff", epilog=EPILOG)
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@setting("arch", text="Compare in this family's terms. Default: the only one that claims both, else by name.")
@setting("rope_layout")
@click.option("--tolerance", type=click.FloatRange(min=0), default=0.0, help="Largest difference of a value that is none.")
@click.option("--all", "every", is_flag=True, help="List every tensor, not only those that differ.")
@verify_option("Check the checksums of .apr files first.")
@json_option("Print JSON (docs/evaluate.md), every tensor in it.")
def command(a: Path, b: Path, every: bool, as_json: bool, **options: Any) -> None:
    """Compare the checkpoints A and B: architecture, tokenizer, the files beside the weights, and every tensor's values.

    Each may be of any format. Files of one family are compared by what its tensors mean, so that a GGUF and the .apr made
    from it agree. Exit status: 0 the same model, 1 a difference in architecture, tokenizer, files that both have beside
    the weights (such as generation_config.json), set of tensors, shapes or values, 2 trouble. Types, containers and
    provenance are shown and do not count.
    """
    from apr_train.errors import AprTrainError

    if not options["verify"]:
        say("The checksums over the data are not checked (--no-verify).")
    try:
        found = _compare(a, b, **options)
    except AprTrainError as error:
        error.exit_code = TROUBLE
        raise
    if as_json:
        emit_json(_data(found))
    else:
        _print(found, every)
    click.get_current_context().exit(0 if found["same"] else DIFFERENT)


def _compare(
    a: Path, b: Path, *, arch: str | None, rope_layout: RopeRows | None, tolerance: float, verify: bool
) -> dict[str, Any]:
    from apr_train.artifact.diff import about_diff, companion_diff, config_diff, match, tensor_diffs, tokenizer_diff
    from apr_train.family.registry import Registry

    with _open(a, verify, rope_layout) as left, _open(b, verify, rope_layout) as right:
        emit_findings([*left.header.findings, *right.header.findings])
        matching = match(left, right, Registry.discover(), arch=arch)
        config, tokens = config_diff(matching), tokenizer_diff(left.header.tokenizer, right.header.tokenizer)
        beside = companion_diff(left.header, right.header, matching)
        total = sum(tensor.nbytes for tensor in left.header.tensors.values())
        with progress_bar("comparing", total) as progress:
            tensors = list(tensor_diffs(left, right, matching, progress=progress))
        differing = [item for item in tensors if item.differs(tolerance)]
        return {
            "a": str(a),
            "b": str(b),
            "same": not (config or tokens or beside or differing),
            "family": matching.family,
            "reason": matching.reason,
            "left_out": matching.left_out,
            "config": config,
            "tokenizer": tokens,
            "companions": beside,
            "about": about_diff(left.header, right.header),
            "tensors": tensors,
            "differing": differing,
            "tolerance": tolerance,
        }


def _open(path: Path, verify: bool, rope_layout: RopeRows | None) -> Any:
    """With the user's word on the rows only where the file itself does not say."""
    from apr_train.artifact.merge import merged_run
    from apr_train.checkpoint.open import open_checkpoint
    from apr_train.run.folder import weights_of

    merged = merged_run(path, verify=verify)
    if merged is not None:
        return merged
    path = Path(weights_of(path))
    checkpoint = open_checkpoint(path, verify=verify, whole=False)
    if rope_layout is None or checkpoint.header.rope_rows is not None:
        return checkpoint
    checkpoint.close()
    return open_checkpoint(path, verify=verify, rope_layout=rope_layout, whole=False)


def _data(found: dict[str, Any]) -> dict[str, Any]:
    named = {item.name for item in found.pop("differing")}
    tensors = [_tensor(item) | {"differs": item.name in named} for item in found.pop("tensors")]
    return {"schema_version": SCHEMA_VERSION, **found, "tensors": tensors}


def _tensor(item: TensorDiff) -> dict[str, Any]:
    sides = {
        letter: None if side is None else {"name": side.name, "dtype": side.dtype, "shape": list(side.shape)}
        for letter, side in (("a", item.a), ("b", item.b))
    }
    numbers = {name: getattr(item.distance, name, None) for name in ("max_abs", "mean_abs", "cosine")}
    finite = {name: value if value is not None and math.isfinite(value) else None for name, value in numbers.items()}
    return {"name": item.name, "status": item.status, **sides, **finite}


def _print(found: dict[str, Any], every: bool) -> None:
    how = f"as {found['family']}'s" if found["family"] else "by name"
    tell(f"A: {found['a']}\nB: {found['b']}\ntensors compared {how}: {found['reason']}")
    for title, name in _TITLES.items():
        _print_fields(title, found[name])
    shown = found["tensors"] if every else found["differing"]
    if shown:
        tell()
        emit_table(("tensor", "what", "shape", "type A", "type B", "max", "mean", "cosine"), [_row(item) for item in shown])
    if found["left_out"]:
        tell(f"\nnot compared, for the model does not read them: {', '.join(found['left_out'])}")
    _print_verdict(found)


def _print_fields(title: str, fields: list[Field]) -> None:
    if fields:
        tell()
        emit_table((title, "A", "B"), [(item.name, _text(item.a), _text(item.b)) for item in fields])


def _text(value: Any) -> str:
    text = "–" if value is None else str(value)
    return text if len(text) <= _LONG else f"{text[: _LONG - 3]}..."


def _row(item: TensorDiff) -> tuple[str, ...]:
    shapes = list(dict.fromkeys(str(list(side.shape)) for side in (item.a, item.b) if side is not None))
    types = ("–" if side is None else side.dtype for side in (item.a, item.b))
    distance = item.distance
    numbers = ("–", "–", "–")
    if distance is not None:
        cosine = "–" if distance.cosine is None else f"{distance.cosine:.8f}"
        numbers = (f"{distance.max_abs:.3g}", f"{distance.mean_abs:.3g}", cosine)
    return item.name, item.status, " / ".join(shapes), *types, *numbers


def _print_verdict(found: dict[str, Any]) -> None:
    differing, total = len(found["differing"]), len(found["tensors"])
    within = f" beyond {found['tolerance']:g}" if found["tolerance"] else ""
    counts = f"{differing} of {total} tensors differ{within}"
    if found["same"] or differing:
        tell(f"\n{'the same model' if found['same'] else 'different'}: {counts}")
        return
    titles = [title for title, name in _TITLES.items() if found[name] and name != "about"]
    tell(f"\ndifferent in {' and '.join(titles)} only: {counts}")
