"""What a run will need, before there is a machine for it: the command `plan` without words and exit codes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from apr_train.errors import ConfigError
from apr_train.run.settings import Settings

if TYPE_CHECKING:
    from apr_train.checkpoint.header import Header
    from apr_train.preflight.report import Cleared
    from apr_train.training.planning import Plan


def planned(asked: Settings, *, gpus: int, per_node: int, memory: int | None) -> Plan:
    """What a step of such a run holds on a GPU and sends, and what fits; nothing of it is made.

    Args:
        asked: the settings of the run; nothing but the header of `--init` is read.
        gpus: all of them.
        per_node: those of a machine.
        memory: bytes of one; None: nothing is judged.

    Raises:
        ConfigError: for a model that there is not, with all faults; GPUs that cannot be divided as the settings say.
        AprTrainError: for an attention backend, a checkpoint or a program with which there can be no plan.
    """
    cleared = _cleared(asked)
    from apr_train.training.planning import make_plan  # imports torch

    return make_plan(asked, cleared, gpus=gpus, per_node=per_node, memory=memory)


def _cleared(asked: Settings) -> Cleared:
    """The model that the settings name.

    Raises:
        ConfigError: with all that stands against it.
    """
    from apr_train.preflight import PreflightInput, preflight
    from apr_train.preflight.adapter_rules import adapter_findings
    from apr_train.preflight.optimizer_rules import optimizer_findings

    report = preflight(PreflightInput.of(asked, header=_header(asked)))
    adapters = [found for found in adapter_findings(asked, report) if found.subject != "--lora-rank"]
    faults = [*report.errors, *adapters, *optimizer_findings(asked, report)]
    faults = [found for found in faults if found.severity == "error"]
    if faults or report.settled is None:
        raise ConfigError.of(faults)
    return report.settled


def _header(asked: Settings) -> Header | None:
    if asked.model.init is None:
        return None
    from apr_train.checkpoint.open import open_checkpoint

    with open_checkpoint(asked.model.init, verify=False, rope_layout=asked.model.rope_layout) as checkpoint:
        return checkpoint.header
