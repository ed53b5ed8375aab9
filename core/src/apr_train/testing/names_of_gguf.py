"""A family's names of GGUF tensors against the tables of the `gguf` package, which llama.cpp's converter is built on."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import gguf
import numpy as np

from apr_train.errors import NameMapError
from apr_train.family.card import Layout
from apr_train.family.config import ModelConfig
from apr_train.family.name_map import NameMap
from apr_train.family.operations import RopeRowPermutation
from apr_train.family.plugin import Family
from apr_train.testing.compare import fail_on
from apr_train.testing.report import NotCheckedError

SUFFIXES = (".weight", ".bias")


def check_gguf_names(family: Family, config: ModelConfig) -> str:
    """Each GGUF name is one of the architecture's; and belongs to the Hugging Face name that the converter makes it of."""
    ours = _gguf_map(family, config)
    theirs = family.map_tensor_names(config, Layout())
    faults, compared, silent = [], 0, 0
    for name in family.info.gguf_architectures:
        architecture = _architecture(name)
        known = _known(architecture, config.num_hidden_layers)
        faults += [f"{tensor} is no tensor of {name}" for tensor in ours.tensors if _stem(tensor) not in known]
        table = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
        for tensor, found in _pairs(theirs, ours):
            expected = table.get_name(tensor, SUFFIXES)
            if expected is None:
                silent += 1
                continue
            compared += 1
            if expected not in found:
                faults.append(f"{tensor} is {expected} in a GGUF of {name}, and here {', '.join(sorted(found))}")
    fail_on(faults, where="")
    unknown = f", {silent} that the package's table does not have" if silent else ""
    return f"{compared} names{unknown}"


def check_gguf_rows(family: Family, config: ModelConfig) -> str:
    """Rows of q and k that the converter has permuted come back in the order of Hugging Face's file."""
    if not family.info.gguf_architectures:
        raise NotCheckedError("the card has no gguf_architectures")
    try:
        name_map = family.map_tensor_names(config, Layout(names="gguf", rope_rows="adjacent"))
    except NameMapError as refused:
        raise NotCheckedError("this family's rows are never permuted") from refused
    faults, count = [], 0
    for edges in name_map.fills.values():
        for edge in edges:
            if not isinstance(edge.operation, RopeRowPermutation) or edge.checkpoint_part or edge.parameter_part:
                continue
            count += 1
            rows = np.arange(edge.piece[0], dtype=np.float32).reshape(-1, *[1] * (len(edge.piece) - 1))
            whole = np.broadcast_to(rows, edge.piece).copy()
            if not np.array_equal(edge.to_parameter(_permuted(whole, _heads(edge.parameter, config))), whole):
                faults.append(f"{edge.checkpoint}: the converter's permutation of rows is not undone")
    fail_on(faults, where="")
    if not count:
        raise NotCheckedError("no rows of q and k are permuted")
    return f"{count} tensors"


def check_gguf_values(family: Family, config: ModelConfig) -> str:
    """Numbers of a Hugging Face file are the same in a GGUF, but for norms, which have the config's `norm_offset` added."""
    ours, theirs = _gguf_map(family, config), family.map_tensor_names(config, Layout())
    offset, faults, count = getattr(config, "norm_offset", 0.0), [], 0
    for parameter, edges in theirs.fills.items():
        others = ours.fills.get(parameter, ())
        if len(edges) != 1 or len(others) != 1 or not edges[0].unchanged or others[0].checkpoint_part is not None:
            continue
        count += 1
        shape = edges[0].piece
        values = np.arange(np.prod(shape), dtype=np.float64).reshape(shape)
        normed = len(shape) == 1 and "norm" in parameter and parameter.endswith("weight")
        expected = values + offset if normed else values
        found = np.asarray(others[0].to_checkpoint(edges[0].to_parameter(values)))
        if found.shape != expected.shape or not np.array_equal(found, expected):
            faults.append(f"{others[0].checkpoint} has other numbers than {edges[0].checkpoint}")
    fail_on(faults, where="")
    return f"{count} tensors"


def _heads(parameter: str, config: ModelConfig) -> int:
    return config.num_key_value_heads if "k_proj" in parameter else config.num_attention_heads


def _permuted(array: Any, heads: int) -> Any:
    """Split halves of each head as adjacent pairs: row 2i of a head is its row i, row 2i + 1 the row i + half."""
    half = array.shape[0] // heads // 2
    order = [head * 2 * half + part * half + row for head in range(heads) for row in range(half) for part in range(2)]
    return array[order]


def _gguf_map(family: Family, config: ModelConfig) -> NameMap:
    if not family.info.gguf_architectures:
        raise NotCheckedError("the card has no gguf_architectures")
    try:
        return family.map_tensor_names(config, Layout(names="gguf"))
    except NameMapError as refused:
        raise NotCheckedError(f"the family refuses GGUF names: {refused.finding.problem}") from refused


def _architecture(name: str) -> Any:
    found = [key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == name]
    if not found:
        raise NotCheckedError(f"the installed gguf package knows no architecture {name}")
    return found[0]


def _known(architecture: Any, layers: int) -> set[str]:
    """Every name, without its suffix, that a GGUF of the architecture may have."""
    templates = [gguf.TENSOR_NAMES[tensor] for tensor in gguf.MODEL_TENSORS[architecture]]
    return {template.format(bid=layer, xid=0) for template in templates for layer in range(layers)}


def _stem(name: str) -> str:
    return next((name.removesuffix(suffix) for suffix in SUFFIXES if name.endswith(suffix)), name)


def _pairs(theirs: NameMap, ours: NameMap) -> Iterator[tuple[str, set[str]]]:
    """Each tensor of Hugging Face's file, with the GGUF's tensors that fill the same parameters."""
    filled: dict[str, set[str]] = defaultdict(set)
    for parameter, edges in theirs.fills.items():
        for edge in edges:
            filled[edge.checkpoint] |= {other.checkpoint for other in ours.fills.get(parameter, ())}
    yield from filled.items()
