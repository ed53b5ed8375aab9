"""`apr-train generate`: a decoder continues a text; an encoder fills in masks."""

from __future__ import annotations

import sys
import time
from itertools import count
from typing import TYPE_CHECKING, Any

import click

from apr_train.cli.options import MODEL, json_option, model_options, setting
from apr_train.cli.output import emit_json, emit_table, emit_text, keep_apart, say
from apr_train.run.progress import progress_bar

if TYPE_CHECKING:
    from collections.abc import Iterator

    from apr_train.inference.generate import Continuation
    from apr_train.inference.ready import Ready

SCHEMA_VERSION = 1
FILLERS = 5
"""Fillers that are shown without --top-k."""
_DECODER_ONLY = ("max_tokens", "temperature", "top_p", "seed", "stop", "compile", "echo")
EPILOG = """Examples: apr-train generate runs/NAME --prompt "def fib(n):"   ·   apr-train generate x.gguf --prompt -
--temperature 0.8 --top-p 0.95 < start.py   ·   apr-train generate coder.apr --prefix "def add(a, b): return "
--suffix "# the sum"   ·   apr-train generate runs/NAME --chat   ·   apr-train generate
encoder.apr --fill-mask "def <mask>(x):" """


def _text_behind(_: click.Context, option: click.Parameter, value: str | None) -> str | None:
    """`--fill-mask --prompt TEXT` would take the option for the text, and complain about the text."""
    if value == "--prompt":
        raise click.UsageError(f"{option.opts[0]} takes the text itself, without --prompt: {option.opts[0]} TEXT")
    return value


@click.command("generate", epilog=EPILOG)
@click.argument("file")
@click.option("--prompt", help="Start of the text, for a decoder; - reads it from standard input.")
@click.option(
    "--fill-mask",
    "masked",
    metavar="TEXT",
    callback=_text_behind,
    help="For an encoder: a text with its mask token; - reads it.",
)
@click.option("--prefix", metavar="TEXT", help="Fill a hole: the text before it; - reads it.")
@click.option("--suffix", metavar="TEXT", help="Fill a hole: the text behind it; - reads it.")
@click.option("--chat", is_flag=True, help="Talk to the model: --prompt is one turn; without it each line that is read is one.")
@click.option("--system", metavar="TEXT", help="With --chat: what the model is told first.")
@setting("chat_template", text="With --chat: a template (.jinja, or tokenizer_config.json) instead of the model's own.")
@setting("fim_tokens", metavar="PRE,SUF,MID", text="Fill a hole: its tokens; the run's, the family's or known ones otherwise.")
@click.option("--max-tokens", type=click.IntRange(min=1), help="Tokens at most. Default: 256, or what the positions allow.")
@click.option("--temperature", type=float, help="0 (the default): the most likely token; above: draw, flatter the higher.")
@click.option("--top-p", type=float, help="Draw from the likeliest tokens that together have this probability.")
@click.option("--top-k", type=click.IntRange(min=1), help="Draw from this many tokens; with --fill-mask: how many are shown.")
@click.option("--seed", type=click.IntRange(min=0), help="Of the draws; the same seed gives the same text. Default: 0.")
@click.option("--stop", multiple=True, metavar="TEXT", help="Stop before this text; may be given several times.")
@setting("compile", text="Compile the step that writes a token, or do not. Default: where so many tokens make up for it.")
@click.option("--echo", is_flag=True, help="Print the prompt, too; of a hole, what stands around it.")
@json_option("Print JSON, when all is done.")
@model_options
@click.pass_context
def command(
    context: click.Context,
    /,
    file: str,
    prompt: str | None,
    masked: str | None,
    prefix: str | None,
    suffix: str | None,
    chat: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Continue a text, talk, or fill a hole with the decoder in FILE, or fill the masks of a text with the encoder in FILE.

    FILE is any checkpoint: .apr, safetensors, GGUF, a Hugging Face folder, a run's folder. The text goes to standard
    output as it comes, everything else to standard error. It ends at the end-of-text token, with --chat at the end of the
    turn, before a --stop text, or after --max-tokens.
    """
    _check_chat(chat, options, others=[masked, prefix, suffix])
    hole = None if prefix is None and suffix is None else (prefix or "", suffix or "")
    if [prompt, masked, hole].count(None) != 2 and not chat:
        raise click.UsageError(
            "Give --prompt (a decoder continues it), --prefix and --suffix (it fills the hole between them), or --fill-mask "
            "(an encoder fills its masks)."
        )
    if hole == ("-", "-"):
        raise click.UsageError("--prefix - and --suffix -: standard input is one text.")
    if options["fim_tokens"] is not None and hole is None:
        raise click.UsageError("--fim-tokens is only with --prefix and --suffix.")
    if "" in options["stop"]:
        raise click.UsageError("--stop: an empty text is everywhere.")
    if not as_json:  # with --json it is apart already
        keep_apart(context)
    if chat:
        _talk(file, None if prompt is None else _text_of(prompt, "--prompt"), as_json, options)
    elif masked is not None:
        _refuse(options)
        _fill(file, _text_of(masked, "--fill-mask"), as_json, options)
    elif hole is not None:
        _infill(file, _text_of(hole[0], "--prefix"), _text_of(hole[1], "--suffix"), as_json, options)
    elif prompt is not None:
        _continue(file, _text_of(prompt, "--prompt"), as_json, options)


def _check_chat(chat: bool, options: dict[str, Any], others: list[str | None]) -> None:
    """Options that are only with --chat, or never."""
    if chat and (options["echo"] or any(text is not None for text in others)):
        raise click.UsageError("--chat is with --prompt, or alone: each line of standard input is then a turn.")
    given = [f"--{name.replace('_', '-')}" for name in ("system", "chat_template") if options[name] is not None]
    if given and not chat:
        raise click.UsageError(f"{', '.join(given)}: only with --chat.")


def _text_of(value: str, option: str) -> str:
    """An option's text; `-` stands for all of standard input.

    Raises:
        DataError: when that is not UTF-8.
    """
    return value if value != "-" else _decoded(sys.stdin.buffer.read(), f"{option} -")


def _decoded(utf8: bytes, where: str) -> str:
    """What was read of standard input.

    Raises:
        DataError: when it is not UTF-8.
    """
    from apr_train.errors import DataError

    try:
        return utf8.decode("utf-8")
    except UnicodeDecodeError as error:
        found = f"byte 0x{error.object[error.start]:02x} at {error.start}"
        raise DataError("standard input is not UTF-8 text", where=where, found=found) from error


def _refuse(options: dict[str, Any]) -> None:
    given = [f"--{name.replace('_', '-')}" for name in _DECODER_ONLY if options[name] not in (None, (), False)]
    if given:
        raise click.UsageError(f"{', '.join(given)}: only with --prompt, or --prefix and --suffix.")


def _ready(file: str, kind: Any, options: dict[str, Any]) -> Ready:
    from apr_train.inference.generate import writing_precision
    from apr_train.inference.ready import Wanted, make_ready, opened

    wanted = Wanted(path=file, **{name: options[name] for name in MODEL})
    with opened(wanted, kind=kind, say=say) as examined, progress_bar("loading", examined.total_bytes) as progress:
        return make_ready(examined, precision=writing_precision(examined.device), progress=progress)


def _writer(file: str, options: dict[str, Any]) -> Ready:
    from apr_train.inference.generate import DEFAULT_LENGTH, for_writing

    ready = _ready(file, "decoder", options)
    return for_writing(ready, tokens=options["max_tokens"] or DEFAULT_LENGTH, compile=options["compile"], say=say)


def _continue(file: str, prompt: str, as_json: bool, options: dict[str, Any]) -> None:
    from apr_train.errors import DataError
    from apr_train.inference.generate import Ends, Sampling, continue_text, ends_of_text

    if not prompt:  # before a model is loaded for nothing
        raise DataError("the prompt is empty", where="--prompt", expected="the start of a text")
    sampling = Sampling(**_chosen(options))
    ready = _writer(file, options)
    ends = Ends(max_tokens=options["max_tokens"], stop=options["stop"], tokens=ends_of_text(ready))
    if options["echo"] and not as_json:
        emit_text(prompt)
    start = time.perf_counter()
    made = continue_text(ready, prompt, sampling=sampling, ends=ends, emit=None if as_json else emit_text)
    _tell(ready, {"prompt": prompt}, made, time.perf_counter() - start, as_json)


def _talk(file: str, prompt: str | None, as_json: bool, options: dict[str, Any]) -> None:
    """One turn, or one for each line of standard input until that ends."""
    from apr_train.data.chat.template import read_template
    from apr_train.inference.chat import Chat, require_text
    from apr_train.inference.generate import Ends, Sampling

    for option, said in (("--prompt", prompt), ("--system", options["system"])):  # before a model is loaded for nothing
        if said is not None:
            require_text(said, option)
    path = options["chat_template"]
    template = None if path is None else read_template(path)
    sampling = Sampling(**_chosen(options))
    ready = _writer(file, options)
    ends = Ends(max_tokens=options["max_tokens"], stop=options["stop"])
    turns = []
    with Chat(ready, system=options["system"], template=template) as chat:
        for text in _lines() if prompt is None else (prompt,):
            start = time.perf_counter()
            made = chat.answer(text, sampling=sampling, ends=ends, emit=None if as_json else emit_text)
            seconds = time.perf_counter() - start
            turns.append(_told(made, seconds))
            if not as_json:
                _say_speed(made, seconds)
    if as_json:
        emit_json(_about(ready) | {"messages": chat.messages, "turns": turns})


def _chosen(options: dict[str, Any]) -> dict[str, Any]:
    """What the user says of the draws."""
    return {name: options[name] for name in ("temperature", "top_p", "top_k", "seed") if options[name] is not None}


def _lines() -> Iterator[str]:
    """The lines of standard input that are not blank; on a terminal a mark asks for each.

    Raises:
        DataError: for a line that is not UTF-8.
    """
    asks = sys.stdin.isatty()
    for number in count(start=1):
        if asks:
            click.echo("> ", nl=False, err=True)
        line = sys.stdin.buffer.readline()
        if not line:
            return
        if text := _decoded(line, f"standard input:{number}").strip():
            yield text


def _infill(file: str, prefix: str, suffix: str, as_json: bool, options: dict[str, Any]) -> None:
    from apr_train.inference.generate import Ends, Sampling, ends_of_text
    from apr_train.inference.infill import infill, require_text, tokens_for

    require_text(prefix, suffix)  # before a model is loaded for nothing
    sampling = Sampling(**_chosen(options))
    ready = _writer(file, options)
    tokens = tokens_for(ready, options["fim_tokens"])
    ends = Ends(max_tokens=options["max_tokens"], stop=options["stop"], tokens=ends_of_text(ready))
    shown = options["echo"] and not as_json
    emit_text(prefix if shown else "")
    start = time.perf_counter()
    made = infill(ready, prefix, suffix, tokens=tokens, sampling=sampling, ends=ends, emit=None if as_json else emit_text)
    emit_text(suffix if shown else "")
    _tell(ready, {"prefix": prefix, "suffix": suffix}, made, time.perf_counter() - start, as_json)


def _tell(ready: Ready, given: dict[str, str], made: Continuation, seconds: float, as_json: bool) -> None:
    if as_json:
        emit_json(_about(ready) | given | _told(made, seconds))
        return
    _say_speed(made, seconds)


def _about(ready: Ready) -> dict[str, Any]:
    return {"schema_version": SCHEMA_VERSION, "path": ready.path, "family": ready.family.name}


def _told(made: Continuation, seconds: float) -> dict[str, Any]:
    return {
        "text": made.text,
        "tokens": made.tokens,
        "prompt_tokens": made.prompt_tokens,
        "stopped_by": made.stopped_by,
        "tokens_per_s": len(made.tokens) / seconds,
    }


def _say_speed(made: Continuation, seconds: float) -> None:
    """End the line of the text, and say what it cost."""
    emit_text("\n")
    speed = len(made.tokens) / seconds
    say(f"[{made.prompt_tokens} + {len(made.tokens)} tokens, stopped by {made.stopped_by}, {speed:,.1f} tokens/s]")


def _fill(file: str, text: str, as_json: bool, options: dict[str, Any]) -> None:
    from apr_train.errors import DataError
    from apr_train.inference.fill import fill_mask

    if not text.strip():
        raise DataError("the text is empty", where="--fill-mask", expected="a text with the mask token in it")
    ready = _ready(file, "encoder", options)
    masks = fill_mask(ready, text, count=options["top_k"] or FILLERS)
    if as_json:
        emit_json(_about(ready) | {"text": text, "masks": masks})
        return
    for number, fillers in enumerate(masks, start=1):
        title = f"mask {number} of {len(masks)}" if len(masks) > 1 else None
        rows = [(f"{filler.probability:.4f}", repr(filler.token), filler.id) for filler in fillers]
        emit_table(("probability", "token", "id"), rows, title=title)
