"""`apr-train eval`: loss, perplexity, bits per byte and speed of any checkpoint on held-out text; with --syntax, a gate."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import click
from attrs import frozen

from apr_train.cli.options import MODEL, json_option, model_options, setting
from apr_train.cli.output import emit_json, emit_pairs, emit_table, say
from apr_train.run.progress import progress_bar

if TYPE_CHECKING:
    from apr_train.inference.evaluate import Measurement
    from apr_train.inference.reference import ReferenceResult, Write
    from apr_train.run.settings import Settings
    from apr_train.training.fim_eval import FimReport
    from apr_train.training.syntax import SyntaxReport

SCHEMA_VERSION = 1
_ROWS = (
    *("data", "val_data", "text_field", "gitignore", "validation_fraction", "sequence_length", "batch_size", "batches"),
    *("parse_special", "document_mask", "mask_probability", "packing"),
)
EPILOG = """Examples: apr-train eval runs/NAME   ·   apr-train eval x.gguf --data src --batches 0 --json   ·
apr-train eval before.apr runs/NAME --syntax 20   ·   apr-train eval runs/NAME --fim 100   ·
apr-train eval x.apr --reference"""


@click.command("eval", epilog=EPILOG)
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@setting("data", text="Files, folders, globs or JSONL. Default: the run's; else the standard library.")
@setting("val_data", text="Held-out text of your own, all of which is measured; --data is not read then.")
@setting("text_field")
@setting("gitignore")
@setting("validation_fraction")
@setting("sequence_length", limits=True)
@setting("batch_size", limits=True, text="Rows in one pass.")
@click.option("--batches", type=click.IntRange(min=0), help="Batches to measure on; 0: the whole held-out text.")
@setting("parse_special")
@setting("document_mask")
@setting("packing")
@setting("mask_probability")
@click.option("--syntax", type=click.IntRange(min=1), metavar="N", help="Complete N held-out functions: how many are Python?")
@click.option(
    "--fim", type=click.IntRange(min=1), metavar="N", help="Hide a line in each of N held-out documents: what is written?"
)
@setting(
    "fim_tokens",
    metavar="PRE,SUF,MID",
    text="With --fim: the tokens of a hole; the run's, the family's or known ones otherwise.",
)
@click.option("--max-tokens", type=click.IntRange(min=1), help="With --syntax: tokens of a completion. Default: 96.")
@setting("compile", text="Compile the blocks for the loss: it moves by the rounding of sums. Pays for hundreds of batches.")
@click.option(
    "--from-scratch", is_flag=True, help="Forget the weights: measure the same shape freshly initialised, as a baseline."
)
@click.option("--reference", is_flag=True, help="Measure on apr-train's own text, and write the loss into an .apr file.")
@click.option("--write/--no-write", default=None, help="With --reference: also over another number; or only print.")
@json_option("Print JSON (docs/evaluate.md).")
@model_options
def command(
    files: tuple[str, ...],
    syntax: int | None,
    fim: int | None,
    fim_tokens: str | None,
    max_tokens: int | None,
    reference: bool,
    write: bool | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Measure the checkpoints FILE... on held-out text: loss, perplexity, bits per byte, tokens per second.

    Each FILE is any checkpoint: .apr, safetensors, GGUF, a Hugging Face folder, a run's folder. A checkpoint of a run is
    measured on that run's own validation rows, so that the loss is the one in its metrics; any other on those of a new run.
    Of several, all are measured on the same rows: those of the first that belongs to a run. Options win over both.

    --reference measures on a text of this package instead, on the CPU in float32 unless an option says otherwise. The number
    goes into the provenance of an .apr file, for --init to compare with; where the file holds another one, nothing is
    written and the status is 1.
    """
    if options["compile"] and (reference or syntax is not None or fim is not None):
        raise click.UsageError("--compile is only for the loss on held-out rows.")
    gate = _Gate(syntax=syntax, max_tokens=max_tokens, fim=fim, fim_tokens=fim_tokens)
    if write is not None and not reference:
        raise click.UsageError("--write and --no-write are only with --reference.")
    if reference:
        _refuse_beside_reference({**options, "syntax": syntax, "fim": fim})
        _references(files, options, write, as_json)
    else:
        _on_held_out(files, options, gate, as_json)


@frozen(kw_only=True)
class _Gate:
    """What is asked of a model instead of its loss; nothing where both numbers are None.

    Raises:
        click.UsageError: for two gates, or the option of one that is not asked for.
    """

    syntax: int | None
    max_tokens: int | None
    fim: int | None
    fim_tokens: str | None

    def __attrs_post_init__(self) -> None:
        if self.max_tokens is not None and self.syntax is None:
            raise click.UsageError("--max-tokens is only with --syntax.")
        if self.fim is not None and self.syntax is not None:
            raise click.UsageError("--fim and --syntax are two gates: ask for one at a time.")
        if self.fim_tokens is not None and self.fim is None:
            raise click.UsageError("--fim-tokens is only with --fim.")

    @property
    def writes(self) -> bool:
        """Whether the model has to write."""
        return self.syntax is not None or self.fim is not None


def _refuse_beside_reference(options: dict[str, Any]) -> None:
    """The reference loss depends on no setting, so that an option that would change it is no option."""
    for name in (*_ROWS, "from_scratch", "syntax", "fim"):
        if options[name] not in (None, (), False):
            raise click.UsageError(f"--reference has a text and rows of its own: leave out --{name.replace('_', '-')}.")


def _references(files: tuple[str, ...], options: dict[str, Any], write: bool | None, as_json: bool) -> None:
    """Measure each file on the reference text, write, print.

    Raises:
        RunError: REFERENCE-001 or -002, for every file that holds another number and keeps it.
    """
    from apr_train.errors import RunError

    results, findings = [], []
    for file in files:
        about, result = _reference(file, options, write)
        results.append(about | _reference_numbers(result))
        if result.not_written:
            say(f"{file}: not written: {result.not_written}")
        finding = None if result.written else result.finding
        if finding is not None and (finding.severity == "warning" or options["tokenizer"] is not None):
            say(f"warning: {finding}")
        elif finding is not None:
            findings.append(finding)
    if as_json:
        _emit_results(results)
    else:
        _print_references(results)
    if findings:
        raise RunError.of(findings)


def _reference(file: str, options: dict[str, Any], write: bool | None) -> tuple[dict[str, Any], ReferenceResult]:
    from apr_train.api.evaluation import about
    from apr_train.inference.ready import Wanted, make_ready, opened
    from apr_train.inference.reference import DEVICE, PRECISION, measure_reference, place_of

    given = {name: options[name] for name in MODEL}
    wanted = Wanted(path=file, **{**given, "device": given["device"] or DEVICE})
    with opened(wanted, say=say) as examined:
        place = place_of(examined, say=say)
        with progress_bar("loading", examined.total_bytes) as progress:
            ready = make_ready(examined, precision=PRECISION, allow_fresh=True, progress=progress)
    if ready.loaded.fresh:
        say(f"warning: {file} does not have {', '.join(ready.loaded.fresh)}: random values stand in for it")
    when: Write = "new" if write is None else "always" if write else "never"
    with progress_bar(f"writing {file}") as progress:
        return about(ready), measure_reference(ready, place, write=when, progress=progress)


def _reference_numbers(result: ReferenceResult) -> dict[str, Any]:
    reference = result.reference
    return {
        **_numbers(result.measured),
        "sequence_length": reference.sequence_length,
        "text_sha256": reference.text,
        "ids_sha256": reference.ids,
        "file_loss": result.held.loss if result.held is not None else None,
        "agrees": result.agrees,
        "written": result.written,
        "not_written": result.not_written,
    }


def _print_references(results: list[dict[str, Any]]) -> None:
    if len(results) > 1:
        columns = ("file", "reference loss", "perplexity", "bits per byte", "ids", "in the file")
        rows = [(item["path"], *_reference_shown(item)) for item in results]
        emit_table(columns, rows)
        return
    (item,) = results
    loss, perplexity, bits, ids, held = _reference_shown(item)
    accuracy = {} if item["accuracy"] is None else {"accuracy": _shown(item)["accuracy"]}
    model = f"{item['family']}, {item['parameters']:,} parameters, {item['precision']} on {item['device']}, {item['attention']}"
    text = f"{item['text_sha256'][:12]}: {item['targets']:,} targets in rows of {item['sequence_length']} tokens"
    numbers = {"reference loss": loss, "perplexity": perplexity, "bits per byte": bits, **accuracy}
    emit_pairs({"model": model, "text": text, "token ids": ids, **numbers, "in the file": held})


def _reference_shown(item: dict[str, Any]) -> tuple[str, ...]:
    """Loss, perplexity, bits per byte, ids, and what the file holds now."""
    shown = _shown(item)
    before = "nothing" if item["file_loss"] is None else f"{item['file_loss']:.6f}"
    held = "written" if item["written"] and item["file_loss"] is None else before
    held = (
        f"written, was {before}" if item["written"] and item["agrees"] is not True and item["file_loss"] is not None else held
    )
    loss = "–" if item["loss"] is None else f"{item['loss']:.6f} nats"
    return loss, shown["perplexity"], shown["bits per byte"], item["ids_sha256"], held


def _on_held_out(files: tuple[str, ...], options: dict[str, Any], gate: _Gate, as_json: bool) -> None:
    """Measure each file on the same held-out rows, print."""
    from apr_train.inference.evaluate import held_out_otherwise, settings_of

    settings, run = settings_of(files)
    if run is not None:
        say(f"rows as in {run}")
        if held_out_otherwise(run):
            say(f"warning: {run} held out other text than this version does: it has learnt some of what is measured")
    results = [_one(file, settings, options, gate) for file in files]
    if as_json:
        _emit_results(results)
    elif gate.fim is not None:
        _print_fim(results)
    elif gate.syntax is None:
        _print_measured(results)
    else:
        _print_syntax(results)


def _one(file: str, settings: Settings, options: dict[str, Any], gate: _Gate) -> dict[str, Any]:
    """One checkpoint's result as JSON-able data; its model is gone when the next one's comes."""
    import attrs

    from apr_train.api.evaluation import about, completed, filled, measured, ready_on_rows
    from apr_train.inference.evaluate import for_measuring
    from apr_train.inference.ready import Wanted

    given = {name: options[name] for name in _ROWS if options[name] not in (None, ())}
    wanted = Wanted(path=file, objective=settings.model.objective, **{name: options[name] for name in MODEL})
    scratch = options["from_scratch"]
    ready, rows = ready_on_rows(wanted, settings, given, writes=gate.writes, from_scratch=scratch, say=say, bar=progress_bar)
    if gate.fim is not None:
        found = _fim(filled(ready, rows, gate.fim, gate.fim_tokens, say=say, bar=progress_bar))
    elif gate.syntax is not None:
        found = _syntax(completed(ready, rows, gate.syntax, gate.max_tokens, say=say, bar=progress_bar))
    else:
        for_measuring(ready, compile=options["compile"], say=say)
        return attrs.asdict(measured(ready, rows, from_scratch=scratch, say=say, shown=True))
    return about(ready) | found | {"from_scratch": scratch}


def _numbers(found: Measurement) -> dict[str, Any]:
    import attrs

    return attrs.asdict(found)


def _emit_results(results: list[dict[str, Any]]) -> None:
    emit_json({"schema_version": SCHEMA_VERSION, "results": [_finite(item) for item in results]})


def _finite(value: Any) -> Any:
    """The value with null for what JSON has no number for, NaN and the infinities."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _print_measured(results: list[dict[str, Any]]) -> None:
    if len(results) > 1:
        columns = ("file", "loss", "perplexity", "bits per byte", "accuracy", "targets", "tokens/s")
        emit_table(columns, [(item["path"], *_shown(item).values()) for item in results])
        return
    item = results[0]
    model = f"{item['family']}, {item['parameters']:,} parameters, {item['precision']} on {item['device']}, {item['attention']}"
    rows = "all rows" if item["batches"] is None else f"at most {item['batches']} × {item['batch_size']} rows"
    text = f"{item['corpus']}: {rows} of {item['sequence_length']} tokens, {item['held_out_tokens']:,} tokens held out"
    shown = {name: value for name, value in _shown(item).items() if value != "–"}
    by_source = {f"loss of {name}": _nats(loss) for name, loss in item["source_loss"].items()}
    emit_pairs({"model": model, "text": text, **shown, **by_source})


def _nats(loss: float | None) -> str:
    return "–" if loss is None else f"{loss:.4f} nats"


def _shown(item: dict[str, Any]) -> dict[str, str]:
    def number(name: str, form: str) -> str:
        return "–" if item[name] is None else format(item[name], form)

    return {
        "loss": _nats(item["loss"]),
        "perplexity": number("perplexity", ",.3f"),
        "bits per byte": number("bits_per_byte", ".4f"),
        "accuracy": number("accuracy", ".2%"),
        "targets": number("targets", ","),
        "tokens/s": number("tokens_per_s", ",.0f"),
    }


def _syntax(report: SyntaxReport) -> dict[str, Any]:
    return {
        "asked": report.asked,
        "completed": len(report.completed),
        "parsed": report.parsed,
        "rate": report.rate,
        "completions": list(report.completed),
    }


def _print_syntax(results: list[dict[str, Any]]) -> None:
    rows = []
    for item in results:
        limited = sum(made.stopped_by == "length" for made in item["completions"])
        rows.append((item["path"], f"{item['parsed']} of {item['completed']}", f"{item['rate']:.1%}", limited))
    emit_table(("file", "functions that parse", "rate", "cut at the token limit"), rows)


def _fim(report: FimReport) -> dict[str, Any]:
    low, high = report.exact_interval
    return {
        "asked": report.asked,
        "lines": len(report.filled),
        "loss": report.loss,
        "line_loss": report.line_loss,
        "end_loss": report.end_loss,
        "exact": report.exact,
        "exact_rate": report.exact_rate,
        "exact_interval": [low, high],
        "judged": report.judged,
        "parsed": report.parsed,
        "parsed_rate": report.parsed_rate,
        "filled": list(report.filled),
    }


def _print_fim(results: list[dict[str, Any]]) -> None:
    rows = []
    for item in results:
        low, high = item["exact_interval"]
        exact = f"{item['exact']} of {item['lines']} ({item['exact_rate']:.1%}; {low:.1%} to {high:.1%})"
        parsed = "–" if item["parsed_rate"] is None else f"{item['parsed']} of {item['judged']} ({item['parsed_rate']:.1%})"
        rows.append((item["path"], f"{item['loss']:.4f} nats", f"{item['end_loss']:.4f} nats", exact, parsed))
    emit_table(("file", "loss on the line", "on its end", "given back exactly (95 %)", "whole parses"), rows)
