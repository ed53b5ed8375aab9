"""Tensor names that a wrapper was left around: torch.compile, data parallelism and adapters put words before or into them.

Told per tensor, one wrapper is as many faults as the model has tensors, twice. It is seen by structure, whatever it is
called: without it, the names are the family's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import attrs
from attrs import frozen

from apr_train import rules
from apr_train.checkpoint.header import Header
from apr_train.checkpoint.tie import tie_from_index
from apr_train.errors import AprTrainError, Finding
from apr_train.family.card import Layout
from apr_train.family.config import ModelConfig
from apr_train.family.plugin import Family
from apr_train.family.rule_index import RuleIndex

WRAPPERS = {
    "_orig_mod": "torch.compile",
    "module": "DataParallel or DistributedDataParallel",
    "base_model": "peft",
    "_fsdp_wrapped_module": "FSDP",
    "_checkpoint_wrapped_module": "activation checkpointing",
}
"""Word → what is known to put it there; a word that is not here is found all the same."""


@frozen(kw_only=True)
class Unwrapped:
    """A header as it would be without the wrapper, to judge everything else by, and the one finding about it."""

    header: Header
    findings: tuple[Finding, ...] = ()


def without_wrapper(header: Header, family: Family) -> Unwrapped:
    """Take off the words that all names begin with, or that stand between the family's own, if that makes them the family's."""
    names = list(header.tensors)
    try:
        known = _Known(header, family)
    except AprTrainError:  # a family that gives no names: that is told where they are needed
        return Unwrapped(header=header)
    fitting = known.count(names)
    if not names or fitting == len(names):
        return Unwrapped(header=header)
    prefix = _prefix(names, known, fitting)
    if prefix:
        return _unwrapped(header, prefix, lambda name: name.removeprefix(prefix))
    words = _words_between(names, known)
    if words:
        return _unwrapped(header, ".".join((*words, "")), lambda name: _without(name, words))
    return Unwrapped(header=header)


class _Known:
    """The names that the family's files can have, headed or bare, with `{layer}` for a layer's number."""

    def __init__(self, header: Header, family: Family) -> None:
        config = _config(header, family)
        rules = [
            rule
            for bare in (False, True)
            for rule in family.map_tensor_names(config, Layout(names=header.names, bare=bare)).rules
        ]
        self.index = RuleIndex(rules)
        self.words = {word for rule in rules for word in rule.checkpoint.split(".")}

    def has(self, name: str) -> bool:
        return self.index.find(name) is not None

    def count(self, names: Iterable[str]) -> int:
        return sum(self.has(name) for name in names)


def _config(header: Header, family: Family) -> ModelConfig:
    """The file's, for the tensors that only some configs have; else a preset's, which shares all other names.

    A config of more layers than the file has tensors is a preset's, too: its number may be any, and a map has them all.
    """
    try:
        config = family.build_config(header=header)
    except AprTrainError:
        return family.build_config(preset=family.info.default_preset)
    if config.num_hidden_layers > len(header.tensors):
        return family.build_config(preset=family.info.default_preset)
    return config


def _prefix(names: list[str], known: _Known, fitting: int) -> str:
    """The shortest common prefix of whole words without which most names are the family's, and more than with it."""
    words = names[0].split(".")
    for number in range(1, len(words)):
        prefix = ".".join((*words[:number], ""))
        if not all(name.startswith(prefix) for name in names):
            break
        count = known.count(name.removeprefix(prefix) for name in names)
        if count > fitting and 2 * count > len(names):
            return prefix
    return ""


def _words_between(names: list[str], known: _Known) -> tuple[str, ...]:
    """The words that no name of the family has, if every name is the family's without them."""
    words = dict.fromkeys(word for name in names for word in name.split(".") if word not in known.words and not word.isdigit())
    stripped = {_without(name, tuple(words)) for name in names}
    return tuple(words) if words and len(stripped) == len(names) == known.count(stripped) else ()


def _without(name: str, words: tuple[str, ...]) -> str:
    return ".".join(word for word in name.split(".") if word not in words)


def _unwrapped(header: Header, wrapper: str, strip: Callable[[str], str]) -> Unwrapped:
    tensors = {strip(name): attrs.evolve(tensor, name=strip(name)) for name, tensor in header.tensors.items()}
    tie = tie_from_index(header.config, tensors)
    renamed = [name for name in header.tensors if strip(name) != name]
    return Unwrapped(
        header=attrs.evolve(header, tensors=tensors, tie=tie),
        findings=(_finding(header, wrapper, renamed, strip),),
    )


def _finding(header: Header, wrapper: str, renamed: list[str], strip: Callable[[str], str]) -> Finding:
    first = renamed[0]
    everywhere = len(renamed) == len(header.tensors) and all(name.startswith(wrapper) for name in renamed)
    return Finding(
        rule=rules.INIT_007,
        subject=header.path,
        field=wrapper,
        problem=f"every tensor's name begins with {wrapper}" if everywhere else f"{wrapper} stands in the tensors' names",
        expected=strip(first),
        found=f"{first}" + (f" and {len(renamed) - 1} more" if len(renamed) > 1 else ""),
        hint=_hint(wrapper, prefix=everywhere),
    )


def _hint(wrapper: str, *, prefix: bool) -> str:
    makers = [maker for word, maker in WRAPPERS.items() if word in wrapper.split(".")]
    origin = f"{' and '.join(makers)} put it there" if makers else "A wrapper put it there"
    removed = f"k.removeprefix({wrapper!r})" if prefix else "".join(["k", *_replacements(wrapper)])
    renamed = f"{{{removed}: v for k, v in tensors.items()}}"
    return f"{origin}: save the state_dict of the model inside, or load_file, then tensors = {renamed}, then save_file."


def _replacements(wrapper: str) -> list[str]:
    return [f".replace({word + '.'!r}, '')" for word in wrapper.split(".") if word]
