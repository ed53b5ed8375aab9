"""A config's fields read from a checkpoint's header, by what the family's card says of its files. Torch-free."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import attrs

from apr_train.checkpoint.header import Header
from apr_train.errors import PluginError
from apr_train.family.card import FamilyInfo
from apr_train.family.layer_patterns import WINDOW_FIELDS, layer_types, null_keys, reads_windows, rotary_layers, with_absent
from apr_train.family.sizes import evaluate, names_in
from apr_train.suggest import did_you_mean

QUIET = "quiet"
"""Key in an attrs field's metadata: see `apr_train.family.config.architecture`."""
LAYER_NORM_EPS = "layer_norm_eps"
AUX_LOSS = "router_aux_loss_coef"
AUX_SWITCH = "output_router_logits"


def values_of(
    cls: type[attrs.AttrsInstance],
    header: Header,
    info: FamilyInfo | None,
    fixed: Mapping[str, Any],
    required: Callable[[Mapping[str, Any]], tuple[str, ...]],
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The values of a config's fields, as far as the file, the card and the caller give them; and the fields that nobody gives.

    Every field that is no `architecture` is read, and those that the card's `config_keys` name, and what `required` names;
    what is fixed (by the card, then by the caller) wins over the file; what the file leaves out is as `_imply` says.
    What is required or in `config_keys` is never defaulted: a null is an answer where a field may be None, silence is none.

    Raises:
        PluginError: the card names a field that the config does not have.
    """
    fields = attrs.fields_dict(cls)
    if info is not None:
        _check_card(info, fields)
    decided = {**(info.fixed if info else {}), **fixed}
    of_files = {*(() if info is None else info.config_keys), *(("sliding_window",) if reads_windows(info) else ())}
    keys = {*required(decided), *of_files} | {name for name, item in fields.items() if not item.metadata.get(QUIET)}
    senseless = {*required({})} - {*required(decided)}
    config = with_absent(header, info)
    names: Mapping[str, str] = {} if info is None else info.config_names
    values = _read(config, sorted(keys - senseless), names)
    likely = {**({} if info is None else info.implied), **values, **decided}
    values |= _read(config, sorted({*required(likely)} - keys), names)  # what those values ask for
    if header.format == "apr" and LAYER_NORM_EPS in keys and "rms_norm_eps" in config:
        values.setdefault(LAYER_NORM_EPS, config["rms_norm_eps"])  # the container has one key for both
    if header.tie.value is not None:
        values["tie_word_embeddings"] = header.tie.value
    values.update(decided)
    if info is None:
        return values, _missing(values, required(values))
    values = {**_nulls(header, info, fields, of_files), **values}
    _imply(values, header, info, fields)
    wanted = dict.fromkeys((*required(values), *sorted(of_files - _made_of_others(values, config))))
    missing = _missing(values, wanted)
    _expand(values, config, info, fields, set(decided))
    return values, missing


def _missing(values: Mapping[str, Any], wanted: Iterable[str]) -> tuple[str, ...]:
    return tuple(name for name in wanted if name not in values)


def _read(config: Mapping[str, Any], read: list[str], names: Mapping[str, str]) -> dict[str, Any]:
    """Each field by its class's own key, else by its own name: a canonical header has either."""
    values = {}
    for name in read:
        key = next((key for key in (names.get(name, name), name) if key in config), None)
        if key is not None:
            values[name] = config[key]
    return values


def _nulls(header: Header, info: FamilyInfo, fields: Mapping[str, Any], of_files: set[str]) -> dict[str, None]:
    """The fields that may be None and are null in the file: it says that there is no such thing."""
    empty = null_keys(header)
    names = {name for name in of_files if {info.config_names.get(name, name), name} & empty}
    return {name: None for name in names if fields[name].default is None}


def _imply(values: dict[str, Any], header: Header, info: FamilyInfo, fields: Mapping[str, Any]) -> None:
    """Fill what is left out and not null; a size of what is missing itself stays missing, and is asked for by name.

    In a GGUF what the card's `gguf_implied` says goes first; last comes what llama.cpp's reader takes for a key that it knows
    and does not find: no such thing.
    """
    nulls = null_keys(header)
    meant = info.implied if header.names != "gguf" else {**_unused(fields), **info.implied, **info.gguf_implied}
    for name, implied in meant.items():
        is_null = info.config_names.get(name, name) in nulls and fields[name].default is None
        if name in values or is_null:
            continue
        if not isinstance(implied, str) or fields[name].type == "str":
            values[name] = implied
        elif all(type(values.get(symbol)) is int for symbol in names_in(implied)):
            values[name] = evaluate(implied, values)


def _unused(fields: Mapping[str, Any]) -> dict[str, Any]:
    from apr_train.checkpoint.gguf_keys import NOT_USED_WHERE_ABSENT  # numpy comes with it, which a card does not need

    return {name: fields[name].default for name in sorted(NOT_USED_WHERE_ABSENT) if name in fields}


def _made_of_others(values: Mapping[str, Any], config: Mapping[str, Any]) -> set[str]:
    """Fields that other keys say as well: the types of layers, and a loss that is added only where it is switched on."""
    found = {"layer_types"}  # of the window, see layer_patterns; where nothing tells the layers, the preflight does
    found |= {"no_rope_layers"} if rotary_layers(config, values.get("num_hidden_layers")) is not None else set()
    return found | (set() if config.get(AUX_SWITCH) else {AUX_LOSS})


def _expand(values: dict[str, Any], config: Mapping[str, Any], info: FamilyInfo, fields: Any, decided: set[str]) -> None:
    """What is said for all layers at once, as one value a layer; a window that no layer has, and a loss that nothing adds."""
    known, layers = {**config, **values}, values.get("num_hidden_layers")
    if reads_windows(info) and fields.keys() >= WINDOW_FIELDS and not WINDOW_FIELDS & decided:
        types = layer_types(known, layers, info)
        types = None if _is_all(types, "full_attention", layers) else types
        values |= {"layer_types": types, "sliding_window": None if types is None else values.get("sliding_window")}
    if "no_rope_layers" in info.config_keys:
        rotary = rotary_layers(known, layers)
        values["no_rope_layers"] = None if _is_all(rotary, 1, layers) else rotary
    if AUX_LOSS in info.config_keys and not config.get(AUX_SWITCH):
        values[AUX_LOSS] = 0.0  # as transformers, which adds the loss only where the file switches its logits on


def _is_all(values: Any, value: Any, layers: Any) -> bool:
    """Whether a list has one value for every layer; one of another length is left to the validators."""
    return isinstance(values, list | tuple) and len(values) == layers and all(item == value for item in values)


def _check_card(info: FamilyInfo, fields: Mapping[str, Any]) -> None:
    for part in ("config_keys", "fixed", "implied", "gguf_implied", "config_names"):
        for name in getattr(info, part):
            if name not in fields:
                raise PluginError(
                    f"FAMILY.{part} names no field of its config",
                    where=info.name,
                    expected="a field",
                    found=name,
                    hint=did_you_mean(name, fields),
                )
    for part, name, implied in _implications(info):
        unknown = [symbol for symbol in names_in(implied) if symbol not in fields] if isinstance(implied, str) else []
        if unknown and fields[name].type != "str":
            raise PluginError(
                f"FAMILY.{part} has a size that no field has, for {name}",
                where=info.name,
                expected="fields, numbers, products and sums of them",
                found=implied,
                hint=did_you_mean(unknown[0], fields),
            )


def _implications(info: FamilyInfo) -> list[tuple[str, str, Any]]:
    parts: tuple[tuple[str, Mapping[str, Any]], ...] = (("implied", info.implied), ("gguf_implied", info.gguf_implied))
    return [(part, name, value) for part, values in parts for name, value in values.items()]
