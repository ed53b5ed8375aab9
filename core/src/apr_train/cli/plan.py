"""`apr-train plan`: what a run will hold on each GPU and send between them, and which settings fit."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from apr_train.cli.options import FC, config_option, given, json_option, setting
from apr_train.cli.output import emit_json, emit_pairs, emit_table, tell
from apr_train.run.option import flag
from apr_train.run.units import count, size

if TYPE_CHECKING:
    from apr_train.training.planning import Plan, Way

PER_NODE = 8
_SETTINGS = (
    *("arch", "init", "preset", "vocab_size", "rope_layout", "objective", "attention", "sequence_length", "batch_size"),
    *("accumulate", "document_mask", "packing", "mask_probability", "optimizer", "bf16_update"),
    *("lora_rank", "lora_target", "ema", "precision", "recompute", "recompute_keep", "shard", "replicate"),
)
"""What changes memory, or what is sent."""


def _options(function: FC) -> FC:
    for name in reversed(_SETTINGS):
        function = setting(name)(function)
    return function


@click.command("plan", epilog="Example: apr-train plan --arch NAME --preset NAME --gpus 64 --memory 80GB")
@click.option("--gpus", type=int, default=1, show_default=True, help="All of them.")
@click.option("--gpus-per-node", "per_node", type=int, default=PER_NODE, show_default=True, help="Those of a machine.")
@click.option("--memory", help="Of a GPU, such as 80GB or 79.6GiB; a tenth of it is left free. Without it nothing is judged.")
@_options
@config_option
@json_option("Print the plan as JSON (docs/scale.md).")
def command(gpus: int, per_node: int, memory: str | None, config: Path | None, as_json: bool, **values: Any) -> None:
    """Tell what a run will hold on each GPU, and which --shard, --batch-size and --recompute fit.

    Takes one step of the run itself in tensors without values, so that neither a GPU nor the weights are needed; of --init,
    the header is read. Takes every setting of a run that changes memory, also from --config.
    """
    from apr_train.api.planning import planned
    from apr_train.run.asked import asked_run
    from apr_train.run.units import parsed_size

    room = None if memory is None else parsed_size(memory, "--memory")
    asked, _ = asked_run(config, None, given(values))
    plan = planned(asked, gpus=gpus, per_node=per_node, memory=room)
    if as_json:
        emit_json(as_data(plan))
    else:
        _show(plan)


def as_data(plan: Plan) -> dict[str, Any]:
    """The plan as docs/scale.md describes it; bytes throughout."""
    settings, footprint = plan.decided.settings, plan.footprint
    return {
        "family": plan.cleared.family.name,
        "preset": settings.model.preset,
        "parameters": plan.parameters,
        "gpus": plan.gpus,
        "memory": plan.memory,
        "room": plan.room,
        "sequence_length": plan.decided.sequence_length,
        "batch_size": plan.decided.batch_size,
        "accumulate": settings.data.accumulate,
        "precision": plan.decided.precision.name,
        "optimizer": settings.optimizer.optimizer,
        "shard": plan.way.shard,
        "replicate": plan.way.replicate,
        "recompute": plan.way.recompute,
        "held": footprint.held,
        "total": footprint.total,
        "phase": footprint.phase,
        "sent": round(footprint.sent),
        "fits": plan.fits,
        "ways": [_way_as_data(way, plan) for way in plan.ways],
    }


def _way_as_data(way: Way, plan: Plan) -> dict[str, Any]:
    return {
        "shard": way.shard,
        "replicate": way.replicate,
        "recompute": way.recompute,
        "held": way.one_row.held,
        "total": way.one_row.total,
        "sent": round(way.one_row.sent),
        "rows": None if plan.room is None else way.rows,
    }


def _show(plan: Plan) -> None:
    settings, held = plan.decided.settings, plan.footprint.held
    named = settings.model.init or settings.model.preset
    tell(f"{plan.cleared.family.name} {named}: {count(plan.parameters)} parameters on {_gpus(plan)}", bold=True)
    rows = [(kind, size(amount)) for kind, amount in held.items() if amount]
    emit_table(("held", "a GPU"), [*rows, ("together", size(plan.footprint.total))])
    tell()
    emit_pairs({"at the peak": plan.footprint.phase, **_verdict(plan), "sent by each": f"{size(plan.footprint.sent)} a step"})
    tell()
    emit_table(_COLUMNS, [_way(way, plan) for way in plan.ways])
    tell()
    tell(_advice(plan), bold=True)


_COLUMNS = ("--shard", "--replicate", "--recompute", "1 row a GPU", "sent a step", "rows that fit", "--batch-size")


def _gpus(plan: Plan) -> str:
    each = "" if plan.memory is None else f" of {size(plan.memory)}"
    precision, length = plan.decided.precision.name, count(plan.decided.sequence_length)
    return (
        f"{plan.gpus} GPU{'s' * (plan.gpus != 1)}{each}, {precision}, {count(plan.decided.batch_size)} rows of {length} tokens"
    )


def _verdict(plan: Plan) -> dict[str, str]:
    if plan.room is None or plan.memory is None:
        return {}
    word = "fits" if plan.fits else "does not fit"
    return {"fits": f"{word}: {size(plan.room)} of {size(plan.memory)} are there for it, the rest is left to CUDA"}


def _way(way: Way, plan: Plan) -> tuple[str, ...]:
    rows = ("–", "–") if plan.room is None else (count(way.rows), count(way.rows * plan.gpus) if way.rows else "–")
    shard = "–" if plan.gpus == 1 else way.shard
    return (shard, str(way.replicate), "yes" if way.recompute else "no", size(way.one_row.total), size(way.one_row.sent), *rows)


def _advice(plan: Plan) -> str:
    if plan.fits is False:
        less = "more GPUs, --precision bf16-weights, --lora-rank, or shorter rows"
        return f"this does not fit; take {less}" if not any(way.rows for way in plan.ways) else "take a smaller --batch-size"
    spread = [] if plan.gpus == 1 else ["--shard", plan.way.shard]
    more = ["--recompute"] if plan.way.recompute else []
    return " ".join(["with", *spread, *more, flag("batch_size"), str(plan.decided.batch_size)])
