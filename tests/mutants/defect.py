"""A seeded defect as data: a text of the core's source or of a family's plugin, and the wrong text in its place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import field, frozen

PLUGIN = "plugin"
"""`Edit.where` of a change in the source of the family's plugin; any other place is `module:qualified.name` of a function."""


@frozen
class Edit:
    """`old`, which stands exactly once at the place, becomes `new`."""

    where: str
    old: str
    new: str


@frozen
class Defect:
    """One mistake, tried in each of `families` by itself."""

    name: str
    families: tuple[str, ...] = field(converter=lambda value: (value,) if isinstance(value, str) else tuple(value))
    edits: tuple[Edit, ...] = field(converter=lambda value: (value,) if isinstance(value, Edit) else tuple(value))
    reference: Mapping[str, Any] = field(factory=dict, kw_only=True)
    """What the compared transformers model has that its family's usual one has not: keys of its config."""


def plugin(old: str, new: str) -> Edit:
    """A change in the plugin's source."""
    return Edit(PLUGIN, old, new)


def core(where: str, old: str, new: str) -> Edit:
    """A change in a function of the core, `where` without `apr_train.`."""
    return Edit(f"apr_train.{where}", old, new)


def reads(**changes: Any) -> Edit:
    """A `build_config` that gives files' configs these values, whatever the files say; presets stay right."""
    said = ", ".join(f"{name}={value!r}" for name, value in changes.items())
    return plugin(
        "@hookimpl\ndef build_config(",
        "@hookimpl\ndef build_config(preset, header):\n"
        "    import attrs\n\n"
        "    config = _as_it_should_be(preset, header)\n"
        f"    return attrs.evolve(config, {said}) if header else config\n\n\n"
        "def _as_it_should_be(",
    )


def builds(body: str) -> Edit:
    """A `build_model` of the plugin's own with this body, which takes `config` and `attention`."""
    lines = "".join(f"    {line}\n" if line else "\n" for line in body.strip("\n").split("\n"))
    return plugin(
        "@hookimpl\ndef map_tensor_names(",
        f"@hookimpl\ndef build_model(config, attention):\n{lines}\n\n@hookimpl\ndef map_tensor_names(",
    )
