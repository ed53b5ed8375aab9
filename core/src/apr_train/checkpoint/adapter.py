"""Adapters (LoRA and peft's other kinds), which mean something only on top of a base: known by their files and names."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from apr_train import rules
from apr_train.checkpoint.files import parse_json
from apr_train.checkpoint.folder import ADAPTER, ADAPTER_CONFIG, ADAPTER_PICKLED, ADAPTER_PREFIX, INDEX, PICKLED, SINGLE
from apr_train.checkpoint.tie import EMBEDDING_SUFFIXES
from apr_train.errors import Finding, FormatError

_FILES = (ADAPTER, ADAPTER_PICKLED)
_TENSOR = re.compile(
    r"(^|\.)(lora_[AB]|lora_embedding_[AB]|lora_magnitude_vector|modules_to_save|base_layer|prompt_embeddings)(\.|$)"
    r"|\.lora_[ab]$"  # GGUF
)
_PROMPTS = frozenset({"PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "ADAPTION_PROMPT", "CPT"})
"""Kinds of peft that add to the input, and cannot be merged into weights."""
_SAVE_AGAIN = "A pickled adapter is never read: open it in peft, and save it again as safetensors"


def folder_finding(folder: Path, names: Sequence[str]) -> Finding | None:
    """An error when a folder holds an adapter that transformers would load, a warning for one that it would not; else None.

    transformers asks for adapter_config.json alone, and loads the adapter on top of what else lies there.
    """
    has_base = bool({SINGLE, INDEX, *PICKLED} & set(names))
    if ADAPTER_CONFIG not in names:
        if not set(_FILES) & set(names):
            return None
        if has_base:
            return _passed_over(folder, names)
    config = _config(folder / ADAPTER_CONFIG) if ADAPTER_CONFIG in names else {}
    kind = f"a {_name(config)} adapter"
    return Finding(
        rule=rules.PREFLIGHT_020,
        subject=str(folder),
        field=ADAPTER_CONFIG if ADAPTER_CONFIG in names else ADAPTER,
        problem=f"{kind} lies beside the model, and would not be used" if has_base else f"{kind}, not a whole model",
        expected="a model whose adapter is merged into it",
        found=_found(config, names),
        hint=_hint(folder, config, names, has_base=has_base),
    )


def _passed_over(folder: Path, names: Sequence[str]) -> Finding:
    """The warning for an adapter's weights beside a base, without the config by which they would be known."""
    return Finding(
        rule=rules.PREFLIGHT_020,
        subject=str(folder),
        field=ADAPTER_CONFIG,
        problem="an adapter's weights lie beside the model and are not read, by transformers neither without their config",
        expected="a model whose adapter is merged into it",
        found=f"{_found({}, names)}, and no {ADAPTER_CONFIG}",
        hint=f"If the adapter is meant, fetch its {ADAPTER_CONFIG}, too: then the command that merges it is named. "
        "Else move it away.",
        severity="warning",
    )


def tensor_finding(path: Path, tensors: Iterable[str]) -> Finding | None:
    """An error when a file's tensors are an adapter's, all or some of them."""
    names = list(tensors)
    adapters = [name for name in names if _TENSOR.search(name)]
    if all(name.startswith(ADAPTER_PREFIX) and not name.endswith(EMBEDDING_SUFFIXES) for name in names):
        adapters = names  # of another of peft's kinds: what is no whole model has no embedding
    if not adapters:
        return None
    whole = len(adapters) == len(names)
    return Finding(
        rule=rules.PREFLIGHT_020,
        subject=str(path),
        field=adapters[0],
        problem="tensors of an adapter (LoRA or another of peft's kinds), not a whole model"
        if whole
        else "an adapter (LoRA or another of peft's kinds) that is not merged into the model",
        expected="a model whose adapter is merged into it",
        found=f"{len(adapters)} of {len(names)} tensors are an adapter's",
        hint=_hint_of_file(path),
    )


def _config(path: Path) -> dict[str, Any]:
    try:
        return parse_json(path)
    except FormatError:
        return {}  # that the adapter is there is what counts


def _text(config: dict[str, Any], key: str) -> str | None:
    value = config.get(key)
    return value if isinstance(value, str) and value else None


def _name(config: dict[str, Any]) -> str:
    kind = _text(config, "peft_type")
    return {None: "LoRA (or other peft)", "LORA": "LoRA"}.get(kind, kind or "")


def _found(config: dict[str, Any], names: Sequence[str]) -> str:
    base = _text(config, "base_model_name_or_path")
    files = ", ".join(name for name in (ADAPTER_CONFIG, *_FILES) if name in names)
    return f"{files}, for the base {base}" if base else files


def _hint(folder: Path, config: dict[str, Any], names: Sequence[str], *, has_base: bool) -> str:
    if _text(config, "peft_type") in _PROMPTS:
        without = (
            "Move adapter_* out of the folder, to take the model without it" if has_base else "Give the base model instead"
        )
        return f"It adds learnt prompts, which cannot be merged into weights. {without}."
    if not has_base:
        named = _text(config, "base_model_name_or_path")
        base = f"its base, {named}" if named else "its base"
        if ADAPTER not in names:
            return f"{_SAVE_AGAIN}. Then merge it into {base}: {_merge('BASE', str(folder))}, and give X.apr."
        return f"Merge it into {base}: {_merge('BASE', str(folder))}, then give X.apr."
    return (
        "Move adapter_* into a folder of their own (ADAPTER); without them the model is taken as it is. "
        f"To merge it: {_merge(str(folder), 'ADAPTER')}, then give X.apr."
    )


def _hint_of_file(path: Path) -> str:
    """What to do with a file that holds an adapter: of one as peft saves it, to merge its folder."""
    if path.name == ADAPTER and (path.parent / ADAPTER_CONFIG).is_file():
        return f"Merge it into its base: {_merge('BASE', str(path.parent))}, then give X.apr."
    return "Merge it into its base first: peft's merge_and_unload(), then save_pretrained(NEW_FOLDER), and give that folder."


def _merge(base: str, adapter: str) -> str:
    """The command that makes one model of a base and its adapter."""
    return f"apr-train merge {shlex.quote(adapter)} --base {shlex.quote(base)} -o X.apr"
