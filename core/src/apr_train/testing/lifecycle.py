"""A family through all that one does with a model: files in both directions, a training with its resume, what comes after.

Each check runs the code that the command line runs, on a tiny model, in seconds.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
from torch import Tensor, nn

from apr_train.errors import ConfigError
from apr_train.family.card import Layout
from apr_train.family.config import ModelConfig
from apr_train.family.decoder_config import DecoderConfig
from apr_train.family.plugin import Family
from apr_train.inference.evaluate import batches_for, corpus_for, measure, rows_for
from apr_train.inference.generate import Ends, Sampling, continue_text
from apr_train.inference.ready import Ready, Wanted, make_ready, opened
from apr_train.model.attention import BACKEND_NAMES, MaskKind, Request, load_backend
from apr_train.preflight.config_keys import config_key_findings
from apr_train.run.folder import METRICS, MODEL
from apr_train.run.json_lines import read_json_lines
from apr_train.run.metrics import MEASURED
from apr_train.run.resume import plan_resume
from apr_train.run.settings import Settings
from apr_train.run.settings_file import with_values
from apr_train.testing.agreement import Precision, compare_models, header_of_reference, reference_config
from apr_train.testing.compare import fail_on
from apr_train.testing.files import check_files
from apr_train.testing.float64 import compute_in_float64
from apr_train.training.finish import finish
from apr_train.training.loop import train
from apr_train.training.setup import prepare


def check_reference(
    family: Family, reference: nn.Module, tokens: Tensor, folder: Path, *, vanishing: tuple[str, ...] = ()
) -> None:
    """Compute what a transformers model computes: in float32, in float64, and through files in both directions.

    Everything that `compare_models` compares, with plain attention and with torch's own where it can run; and what the family
    reads where a file leaves a key out, with what the reference's class takes.

    Args:
        family: whose model it is.
        reference: a transformers model with weights of its own (`randomize` gives them), in evaluation mode.
        tokens: `[batch, length]` int64; take more of them than a window is long.
        folder: an empty one; see `check_files`.
        vanishing: see `compare_models`.

    Raises:
        ConformanceError: naming every tensor that differs.
        AprTrainError: what a user would be told about the files.
    """
    config = reference_config(family, reference)
    check_absent_keys(family, reference)
    wide = compute_in_float64(reference)
    for attention in runnable(config):
        pairs: tuple[tuple[nn.Module, Precision], ...] = ((reference, "weights"), (wide, "float64"))
        for model, precision in pairs:
            compare_models(family, config, model, tokens, attention=attention, precision=precision, vanishing=vanishing)
    check_files(family, reference, tokens, folder)


def check_absent_keys(family: Family, reference: nn.Module) -> None:
    """Each key of the reference's config.json left out in turn: the family must take what the class takes, or ask for it.

    Args:
        family: whose config it is.
        reference: a transformers model; its config stays as it is.

    Raises:
        ConformanceError: naming every key that is read otherwise, with both values.
    """
    typed: Any = reference
    whole, faults = typed.config.to_dict(), []
    for key in sorted(whole):
        silent = {name: value for name, value in whole.items() if name != key}
        meant, read = _taken(typed.config, silent), _read(family, reference, silent)
        wanted = None if meant is None else _read(family, reference, meant)
        if read is None or wanted is None or _shapes(family, read) != _shapes(family, wanted):
            continue  # it is asked for; or the class makes no config of it; or the tensors of a file show the difference
        theirs = wanted.to_dict()
        faults += [
            f"without {key} in a file the class takes {name} {theirs[name]!r}, and {value!r} is read: say it in FAMILY.implied"
            for name, value in read.to_dict().items()
            if value != theirs[name]
        ]
    fail_on(faults, where=f"{family.name} build_config")


def _shapes(family: Family, config: ModelConfig) -> dict[str, tuple[int, ...]]:
    return dict(family.map_tensor_names(config, Layout()).tensors)


def _taken(config: Any, silent: dict[str, Any]) -> dict[str, Any] | None:
    """What the class of a config makes of a file; None when it refuses it."""
    try:
        found: dict[str, Any] = type(config).from_dict(copy.deepcopy(silent)).to_dict()
    except Exception:  # another library's class refuses a config in ways of its own
        return None
    return found


def _read(family: Family, reference: nn.Module, config: dict[str, Any]) -> ModelConfig | None:
    """The family's config of a file; None where a run of it would be refused."""
    header = header_of_reference(reference, config)
    try:
        read = family.build_config(header=header)
    except ConfigError:
        return None
    refused = any(finding.severity == "error" for finding in config_key_findings(header, read, family.info))
    return None if refused else read


def runnable(config: ModelConfig) -> Iterator[str]:
    """The core's backends that can train this config on a CPU."""
    for name in BACKEND_NAMES:
        mask: MaskKind = "causal" if isinstance(config, DecoderConfig) else "bidirectional"
        request = Request.for_config(config, device="cpu", dtype="F32", mask=mask)
        if load_backend(name).supports(attrs.evolve(request, dropout=0.0)) is None:
            yield name


STEPS = 4
"""Of the training in `check_run`; it is resumed after half of them."""
_TEXT = "".join(f"def scale_{n}(values):\n    return [value * {n} + {n % 7} for value in values]\n\n\n" for n in range(400))


def check_run(family: Family, folder: Path, *, preset: str = "tiny", **settings: Any) -> Path:
    """Train a preset, go on from the middle, evaluate and write: the resume must end in the same bits.

    Args:
        family: an installed one.
        folder: an empty one; a corpus, two runs of the preset's size are written into it.
        preset: the config to train, small.
        settings: further ones, by their names in config.toml (`document_mask=True`, `recompute=True`, `compile=True`).

    Returns:
        The run's folder.

    Raises:
        ConformanceError: when the resumed run differs, or the evaluation of its model is not the run's own.
        AprTrainError: what a user would be told.
    """
    corpus = folder / "text"
    corpus.mkdir()
    for number in range(20):
        (corpus / f"{number}.py").write_text(f"# part {number}\n{_TEXT[number * 900 : number * 900 + 2400]}", encoding="utf-8")
    values = {
        "arch": family.name, "preset": preset, "vocab_size": 320, "data": (str(corpus),), "sequence_length": 48,
        "batch_size": 2, "steps": STEPS, "val_every": 0, "val_batches": 2, "save_every": STEPS // 2, "keep": 0,
        "precision": "fp32", "device": "cpu", "threads": 1, "seed": 3, "sample_tokens": 0, "lr": 1e-3,
        "warmup_steps": 1, "out": str(folder / "runs"), "run": "whole",
    }  # fmt: skip
    whole = _train(with_values(Settings(), values | settings), None)
    resumed = folder / "runs" / "resumed"
    shutil.copytree(whole, resumed)
    plan = plan_resume(resumed / f"step-{STEPS // 2:06d}", Settings(), ())
    _train(plan.settings, plan)
    faults = [f"{name} differs" for name in (MODEL,) if (whole / name).read_bytes() != (resumed / name).read_bytes()]
    faults += ["the metrics differ"] if _curve(whole) != _curve(resumed) else []
    fail_on(faults, where=f"{family.name} resumed")
    _check_afterwards(family, whole, values | settings)
    return whole


def _train(settings: Settings, plan: Any) -> Path:
    with prepare(settings, plan, lambda text: None) as prepared:
        train(prepared.run)
        finish(prepared)
        return prepared.run.folder


def _curve(run: Path) -> list[dict[str, Any]]:
    return [{name: value for name, value in line.items() if name not in MEASURED} for line in read_json_lines(run / METRICS)]


def _check_afterwards(family: Family, run: Path, values: dict[str, Any]) -> None:
    """Evaluation of the written model gives the run's last validation loss; a decoder continues a text."""
    ready = _ready(family, run)
    settings = with_values(Settings(), values)
    rows = rows_for(settings, {}, config=ready.config, objective=ready.objective, device=ready.device)
    found = measure(ready, batches_for(rows, ready, corpus_for(rows, ready, progress=None, say=lambda text: None)))
    last = [line["val_loss"] for line in read_json_lines(run / METRICS) if "val_loss" in line][-1]
    fail_on(
        [f"eval gives {found.loss}, the run had {last}"] if abs(found.loss - last) > 1e-4 else [], where=f"{family.name} eval"
    )
    if family.info.kind == "decoder":
        made = continue_text(ready, "def scale", sampling=Sampling(temperature=0), ends=Ends(max_tokens=8))
        fail_on([] if made.tokens else ["generate writes nothing"], where=family.name)


def _ready(family: Family, run: Path) -> Ready:
    """By name: another installed family may have files of the same class."""
    with opened(Wanted(path=str(run), device="cpu", arch=family.name), say=lambda text: None) as examined:
        return make_ready(examined, precision="fp32")
