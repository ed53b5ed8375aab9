"""The hooks that a family answers. See docs/hooks.md for the contract and a worked example."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from torch import nn

    from apr_train.checkpoint.header import Header
    from apr_train.errors import Finding
    from apr_train.family.card import Layout
    from apr_train.family.config import ModelConfig
    from apr_train.family.name_map import NameMap
    from apr_train.model.attention import AttentionBackend

PROJECT = "apr_train"
MANDATORY = ("build_config", "map_tensor_names")
"""The hooks that a family must answer; the others have defaults."""
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec(firstresult=True)
def build_config(preset: str | None, header: Header | None) -> ModelConfig:  # type: ignore[empty-body]
    """Make the model's config, from a preset's name or from a checkpoint's header.

    Called once per run, before anything else of the family. Exactly one argument is not None. Must not read tensor
    data or import torch; from a header, must not default any field in the config's `REQUIRED`.

    Raises:
        ConfigError: naming every field that the header lacks, or a preset that does not exist.

    Example:
        >>> @hookimpl
        ... def build_config(preset, header):
        ...     return read_config(FAMILY, PRESETS, preset, header)
    """


@hookspec(firstresult=True)
def map_tensor_names(config: ModelConfig, layout: Layout) -> NameMap:  # type: ignore[empty-body]
    """Say which checkpoint tensor fills which parameter, for one layout of names and RoPE rows.

    Called by preflight, load, import and export. Must be pure and torch-free. Must name every parameter of the model
    that `build_model` makes (or that the core makes from the config); must not leave a tensor out silently.

    Raises:
        NameMapError: for a layout that this family's files never have.

    Example:
        >>> @hookimpl
        ... def map_tensor_names(config, layout):
        ...     return NameMap.for_config(config, decoder_rules(config, layout))
    """


@hookspec(firstresult=True)
def validate_family(header: Header, objective: str) -> list[Finding]:  # type: ignore[empty-body]
    """Optional: judge a checkpoint that is this family's: can it train this objective, are its numbers consistent?

    Without an answer a family finds nothing beyond the core's own rules.
    Called by preflight after the core's own rules. Must return every fault, not the first; must not raise for a bad
    file, read tensor data or import torch. The core already checks tensor names, shapes, tie, tokenizer and the config
    keys that no field of the config stands for.

    Example:
        >>> @hookimpl
        ... def validate_family(header, objective):
        ...     return []
    """


@hookspec(firstresult=True)
def attention_impl(config: ModelConfig) -> list[str | AttentionBackend]:  # type: ignore[empty-body]
    """Optional: list the attention backends for this architecture, most wanted first.

    Without an answer the list is `["xformers", "sdpa", "eager"]`.
    Called when a model is built, and (for the names only) by `apr-train plugins`. The first that can run on the device
    is taken. Names are the core's (`xformers`, `sdpa`, `eager`); an object is a backend of the family's own. Must not
    import torch to answer with names.

    Example:
        >>> @hookimpl
        ... def attention_impl(config):
        ...     return ["xformers", "sdpa", "eager"]
    """


@hookspec(firstresult=True)
def build_model(config: ModelConfig, attention: AttentionBackend) -> nn.Module | None:
    """Optional: make the module; without an answer the core assembles its decoder or encoder from the config.

    Called under `torch.device("meta")`. Must allocate nothing, must satisfy `apr_train.model.LanguageModel`, and
    must name its parameters as `map_tensor_names` says. May import torch.

    Example:
        >>> @hookimpl
        ... def build_model(config, attention):
        ...     return MyDecoder(config, attention)
    """
