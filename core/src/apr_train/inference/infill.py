"""A decoder writes what stands between two texts: fill in the middle, in the order PSM."""

from __future__ import annotations

from collections.abc import Callable

import attrs

from apr_train.data.fim_tokens import FimTokens, encode_texts, fim_tokens
from apr_train.errors import DataError, PreflightError
from apr_train.inference.generate import Continuation, Ends, Sampling, continue_ids
from apr_train.inference.ready import Ready
from apr_train.preflight.fim_rules import outside_findings
from apr_train.run.folder import CONFIG, run_of
from apr_train.run.settings_file import read_toml


def tokens_for(ready: Ready, setting: str | None = None) -> FimTokens:
    """The tokens around a hole of a model: those that are named, else those of its run, its family or a known spelling.

    Raises:
        ConfigError: for a setting that is not three names.
        TokenizerError: FIM-001 or FIM-002.
        PreflightError: FIM-002, for a token without a row in the embedding.
    """
    named = setting if setting is not None else _of_run(ready.path)
    card = ready.family.info.fim_tokens
    tokens = fim_tokens(ready.tokenizer, card=card, setting=named, where=ready.path)
    findings = outside_findings(tokens, ready.config.vocab_size, ready.path)
    if findings:
        raise PreflightError(findings)
    return tokens


def _of_run(path: str) -> str | None:
    """What the run of a checkpoint was told of its tokens; None where there is no run, or it was told nothing."""
    run = run_of(path)
    return None if run is None else read_toml(run / CONFIG).data.fim_tokens


def infill(
    ready: Ready,
    prefix: str,
    suffix: str,
    *,
    tokens: FimTokens,
    sampling: Sampling,
    ends: Ends,
    emit: Callable[[str], None] | None = None,
) -> Continuation:
    """Write the text between `prefix` and `suffix`, which stand as text, whatever they spell, as in training.

    Args:
        ends: when to stop, besides at any of `tokens`.
        emit: gets the text piece by piece.

    Raises:
        DataError: when both are empty, or one is no Unicode text.
        ConfigError: when they and the tokens to come do not fit the model's positions.
        RunError: when the model's output is not a number.
    """
    require_text(prefix, suffix)
    before, behind = encode_texts(ready.tokenizer, [prefix, suffix], tokens, parse_special=False)
    prompt = [*ready.tokenizer.start_ids, *tokens.question(before, behind)]
    return continue_ids(ready, prompt, sampling=sampling, ends=attrs.evolve(ends, tokens=ends.tokens | tokens.ids), emit=emit)


def require_text(prefix: str, suffix: str) -> None:
    """Refuse a hole with nothing around it, and what is no text.

    Raises:
        DataError: naming the option.
    """
    if not prefix and not suffix:
        raise DataError("nothing stands around the hole", where="--prefix, --suffix", expected="text on one side at least")
    for option, text in (("--prefix", prefix), ("--suffix", suffix)):
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise DataError("no UTF-8 text", where=option, found=repr(text[:40])) from error
