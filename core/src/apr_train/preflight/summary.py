"""What was checked and found right, for the summary of a clean check and for a model card."""

from __future__ import annotations

from collections import Counter
from typing import Any

from apr_train.checkpoint.header import Header
from apr_train.checkpoint.tokenizer_spec import TokenizerSpec
from apr_train.family.config import ModelConfig
from apr_train.family.plugin import Family
from apr_train.preflight.surroundings import parameter_count
from apr_train.preflight.tensor_rules import TensorReport


def file_facts(header: Header) -> dict[str, Any]:
    """The file's own card."""
    return {
        "file": header.path,
        "format": header.format,
        "class": header.hf_class,
        "architecture": header.architecture,
        "dtypes": dict(sorted(Counter(tensor.dtype for tensor in header.tensors.values()).items())),
    }


def config_facts(config: ModelConfig | None, family: Family | None, tokenizer: TokenizerSpec | None) -> dict[str, Any]:
    """Family, sizes, and the tokenizer beside the embedding's rows."""
    facts: dict[str, Any] = {}
    if family is not None:
        facts["family"] = f"{family.name} ({family.distribution} {family.version})"
    if config is not None:
        facts["vocab_size"] = config.vocab_size
        facts["usable_positions"] = config.usable_positions
    if tokenizer is not None:
        facts["tokenizer"] = {"size": tokenizer.size, "origin": tokenizer.origin}
    return facts


def tensor_facts(header: Header | None, report: TensorReport | None) -> dict[str, Any]:
    """How many tensors are used, what is ignored or fresh and why, how the tie is known."""
    if header is None or report is None or report.plan is None or report.name_map is None:
        return {}
    plan = report.plan
    used = len(plan.loads) + len(plan.duplicates) + len(plan.ignored)
    return {
        "parameters": parameter_count(report.name_map),
        "tensors": {
            "used": used,
            "total": len(header.tensors),
            "filled": len(plan.loads),
            "parameters": len(report.name_map.fills),
        },
        "ignored": {entry.checkpoint: entry.reason for entry in plan.ignored},
        "fresh": [entry.parameter for entry in plan.fresh],
        "tie": {"value": header.tie.value, "reason": header.tie.reason},
        "rope_rows": header.rope_rows,
    }
