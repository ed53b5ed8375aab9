"""What only the machine knows: positions for a row, a folder, disk, the device, the attention backend, memory."""

from __future__ import annotations

import math
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from apr_train import rules
from apr_train.checkpoint.dtypes import DTYPES
from apr_train.errors import AprTrainError, Finding
from apr_train.family.config import ModelConfig
from apr_train.family.name_map import NameMap
from apr_train.family.plugin import Family
from apr_train.model.attention import MaskKind, Request, choose_backend
from apr_train.run.option import flag
from apr_train.run.other_names import meant_value
from apr_train.run.precision import PRECISION_TYPES
from apr_train.run.settings import OptimizerSettings
from apr_train.run.units import size


def sequence_findings(sequence_length: int, config: ModelConfig) -> list[Finding]:
    """A row must not have more tokens than the model has usable positions."""
    if 0 < sequence_length <= config.usable_positions:
        return []
    return [
        Finding(
            rule=rules.PREFLIGHT_009,
            subject="--seq-len",
            problem="the model has no position for every token of a row",
            expected=f"1 to {config.usable_positions} usable positions",
            found=str(sequence_length),
        )
    ]


def parameter_count(name_map: NameMap) -> int:
    """Stored parameters of the model, tied ones once."""
    return sum(math.prod(shape) for shape in name_map.parameters.values())


def out_findings(out: Path) -> list[Finding]:
    """The folder, or the nearest one that exists above it, can be written."""
    folder = _existing(out)
    try:
        out.lstat()
    except (FileNotFoundError, NotADirectoryError):
        pass  # it is judged by what is above it
    except OSError as error:  # a name that is too long, a loop of links: no folder can be made there
        return [_unwritable(out, str(error.strerror))]
    if folder.is_dir() and os.access(folder, os.W_OK | os.X_OK):
        return []
    return [_unwritable(out, f"{folder} is {'not writable' if folder.is_dir() else 'not a folder'}")]


def _unwritable(out: Path, found: str) -> Finding:
    return Finding(
        rule=rules.PREFLIGHT_013,
        subject=str(out),
        problem="the run's folder cannot be written",
        expected="a writable folder",
        found=found,
    )


def disk_findings(
    out: Path, parameters: int, checkpoints: int, *, bytes_each: int, state_each: int, averages: bool = False
) -> list[Finding]:
    """Room for the checkpoints that are to come, each the model and the optimizer's state, and for the model at the end.

    With `averages` each has the trained weights once more, and the averages in float32.
    """
    beside = bytes_each + weight_bytes("fp32") if averages else 0
    needed = parameters * (checkpoints * (bytes_each + state_each + beside) + bytes_each)
    plural = "" if checkpoints == 1 else "s"
    folder = _existing(out)
    if not folder.is_dir() or (free := shutil.disk_usage(folder).free) >= needed:
        return []
    return [
        Finding(
            rule=rules.PREFLIGHT_014,
            subject=str(out),
            problem=f"not enough disk for {checkpoints} checkpoint{plural} of {parameters:,} parameters, and the model alone",
            expected=f"{size(needed)} free",
            found=f"{size(free)} free",
            hint="Keep fewer checkpoints (--keep), or write elsewhere (--out).",
        )
    ]


def _existing(path: Path) -> Path:
    path = path.absolute()
    while not os.path.lexists(path) and path != path.parent:  # a dangling link is there, and no folder can take its place
        path = path.parent
    return path


_DEVICE = re.compile(r"(?P<kind>cpu|cuda)(:(?P<index>0|[1-9]\d?))?")

Memory = dict[str, int]


def device_findings(device: str) -> list[Finding]:
    """The device exists on this machine. Imports torch for anything but the CPU."""
    name = _DEVICE.fullmatch(device)
    if name is None:
        return [_no_device(device, "unknown")]
    if name["kind"] == "cpu":
        return []
    import torch

    if not torch.cuda.is_available():
        return [_no_device(device, "no CUDA device that torch can use")]
    count = torch.cuda.device_count()
    return [] if int(name["index"] or 0) < count else [_no_device(device, f"{count} CUDA devices, counted from 0")]


def _no_device(device: str, found: str) -> Finding:
    return Finding(
        rule=rules.PREFLIGHT_015,
        subject="--device",
        problem=f"no device {device} here",
        expected="cpu, cuda or cuda:N",
        found=found,
        hint=meant_value("device", device, flag) or "",
    )


def backend_findings(
    family: Family, config: ModelConfig, *, device: str, precision: str, mask: MaskKind, forced: str | None
) -> tuple[list[Finding], str | None]:
    """The backend that would run, in words with the reasons against the others; or why none can. Imports torch."""
    dtype = PRECISION_TYPES[precision].products
    try:
        request = Request.for_config(config, device=device.partition(":")[0], dtype=dtype, mask=mask)
        return [], str(choose_backend(family.attention_impl(config), request, forced))
    except AprTrainError as error:
        return [error.under(rules.PREFLIGHT_015, "attention")], None


def weight_bytes(precision: str) -> int:
    """Bytes of one stored weight; under autocast the weights stay float32."""
    return DTYPES[PRECISION_TYPES[precision].weights].block_bytes


def state_bytes(precision: str, optimizer: OptimizerSettings) -> int:
    """Bytes of AdamW's state for a trained number: two moments in the weights' own type, or in float32 beside a master copy."""
    weight, exact = weight_bytes(precision), weight_bytes("fp32")
    return 3 * exact if weight < exact and optimizer.bf16_update == "master" else 2 * weight


def estimate_memory(
    parameters: int,
    vocab_size: int,
    tokens: int,
    precision: str,
    *,
    adapters: int | None = None,
    frozen: int = 0,
    optimizer: OptimizerSettings | None = None,
    averages: bool = False,
) -> Memory:
    """Bytes that a training step needs; activations come on top and depend on the backend. Imports torch.

    Logits are made in chunks, in the products' type and in float32. Muon's matrices have one moment less than is counted.

    Args:
        parameters: of the model.
        vocab_size: its rows of logits.
        tokens: of a pass.
        precision: by name.
        adapters: numbers in adapters, which are float32 and beside the weights; None: the weights are trained.
        frozen: those of the weights that are not trained.
        optimizer: what it keeps; None: what it does by default.
        averages: whether each trained number has an average in float32 beside it.
    """
    from apr_train.model.loss import CHUNK_ELEMENTS

    weight, product = weight_bytes(precision), PRECISION_TYPES[precision].products
    logits = min(tokens * vocab_size, max(CHUNK_ELEMENTS, vocab_size))
    trained, kind = (parameters - frozen, precision) if adapters is None else (adapters, "fp32")
    gradients = trained * weight_bytes(kind)
    averaged = {"averages": trained * weight_bytes("fp32")} if averages else {}
    return {
        "weights": parameters * weight + (0 if adapters is None else gradients),
        "gradients": gradients,
        "optimizer": trained * state_bytes(kind, optimizer or OptimizerSettings()),
        "logits": logits * (4 if product == "F32" else DTYPES[product].block_bytes + 4),
        **averaged,
    }


def at_the_peak(memory: Memory, phases: Mapping[str, Mapping[Any, int]]) -> Memory:
    """What a step needs when that is most: in a phase of the pass, beside the optimizer's state, or while that is used."""
    state = {kind: count for kind, count in memory.items() if kind in ("optimizer", "averages")}
    update = {kind: memory[kind] for kind in ("weights", "gradients")} | state
    held = [{kind: count for kind, count in phase.items() if count} | state for phase in phases.values()]
    return max(
        ({**found, "activations": found.get("activations", 0)} for found in [update, *held]), key=lambda m: sum(m.values())
    )


def memory_findings(memory: Memory, device: str, available: Callable[[str], int | None] | None = None) -> list[Finding]:
    """A warning if the estimate is more than what is free: an estimate is no proof."""
    free = (available or free_memory)(device)
    needed = sum(memory.values())
    if free is None or needed <= free:
        return []
    parts = ", ".join(f"{name} {size(count)}" for name, count in memory.items())
    if "activations" not in memory:
        parts += ", activations on top, which apr-train plan tells"
    return [
        Finding(
            rule=rules.PREFLIGHT_016,
            subject="--device",
            problem=f"a step needs more memory than {device} has free ({parts})",
            expected=f"at least {size(needed)}",
            found=size(free),
            hint="Take --recompute, a smaller --batch-size, --precision bf16-weights, or a smaller model.",
            severity="warning",
        )
    ]


def free_memory(device: str) -> int | None:
    """Bytes free on the device; None where nobody can say."""
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.mem_get_info(torch.device(device))[0]) if torch.cuda.is_available() else None
    return _available_on_host()


def _available_on_host() -> int | None:
    """Linux's own estimate of what can be taken without swapping."""
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:  # noqa: PTH123  # a kernel interface, not a file of ours
            for line in lines:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        return None  # no such interface on this system: the estimate is left unjudged, as the caller says
    return None
