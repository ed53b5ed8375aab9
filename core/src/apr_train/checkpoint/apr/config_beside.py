"""The config.json in the folder of an `.apr` whose metadata has no dimensions, as aprender's CPU trainer leaves them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attrs import Factory, frozen

from apr_train import rules
from apr_train.checkpoint.files import parse_json
from apr_train.checkpoint.huggingface import canonical_config
from apr_train.errors import Finding, FormatError


@frozen(kw_only=True)
class ConfigBeside:
    """What a config.json adds; nothing when there is none."""

    config: Mapping[str, Any] = Factory(dict)
    hf_class: str | None = None
    architecture: str | None = None
    notes: tuple[Finding, ...] = ()


def config_beside(path: Path, own: Mapping[str, Any], hf_class: str | None) -> ConfigBeside:
    """Read the config.json beside an `.apr`, if there is one.

    Args:
        path: the `.apr`.
        own: what the `.apr` says itself, which config.json must not contradict.
        hf_class: the class that the `.apr` names.

    Raises:
        FormatError: when it is no JSON object, or another model's.
    """
    file = path.parent / "config.json"
    if not file.is_file():
        return ConfigBeside()
    content = parse_json(file)
    config = canonical_config(content, str(file))
    classes, model_type = content.get("architectures"), content.get("model_type")
    named = classes[0] if isinstance(classes, list) and classes and isinstance(classes[0], str) else None
    stated = {**own, **({"architectures": hf_class} if hf_class and named else {})}
    _check_agreement(file, path, stated, {**config, "architectures": named})
    return ConfigBeside(
        config=config,
        hf_class=named,
        architecture=model_type.lower() if isinstance(model_type, str) else None,
        notes=(_note(path, file),),
    )


def _check_agreement(file: Path, path: Path, own: Mapping[str, Any], beside: Mapping[str, Any]) -> None:
    for key, value in own.items():
        if key in beside and beside[key] != value:
            raise FormatError(
                f"the config.json beside {path.name} is another model's",
                path=file,
                field=key,
                rule=rules.INIT_005,
                expected=f"{value!r:.80}, as in {path.name}",
                found=f"{beside[key]!r:.80}",
                hint=f"Put the config.json that {path.name} was trained with beside it.",
            )


def _note(path: Path, file: Path) -> Finding:
    return Finding(
        rule=rules.PREFLIGHT_022,
        subject=str(path),
        field="metadata",
        problem="the file has no dimensions: those of the config.json beside it are taken",
        expected="hidden_size, num_layers, num_heads, … in the metadata",
        found=str(file),
        hint="apr-train import writes a file that has them.",
        severity="warning",
    )
