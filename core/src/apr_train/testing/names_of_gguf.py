"""A family's names of GGUF tensors against the tables of the `gguf` package, which llama.cpp's converter is built on."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import gguf
import numpy as np

from apr_train.errors import NameMapError
from apr_train.family.card import Layout
from apr_train.family.config import ModelConfig
from apr_train.family.name_map import NameMap, to_checkpoint, to_parameters
from apr_train.family.operations import RopeRowPermutation
from apr_train.family.plugin import Family
from apr_train.testing.compare import fail_on
from apr_train.testing.report import NotCheckedError

SUFFIXES = (".weight", ".bias")
EXPERT_NUMBER = re.compile(r"\.experts\.(\d+)\.")


ENCODER = {
    "embeddings.word_embeddings": "token_embd",
    "embeddings.position_embeddings": "position_embd",
    "embeddings.token_type_embeddings": "token_types",
    "embeddings.norm": "token_embd_norm",
    "attention.q_proj": "attn_q",
    "attention.k_proj": "attn_k",
    "attention.v_proj": "attn_v",
    "attention.o_proj": "attn_output",
    "attention_norm": "attn_output_norm",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp_norm": "layer_output_norm",
}
"""Modules of the core's encoder by the names that llama.cpp has for a BERT's."""


def check_gguf_names(family: Family, config: ModelConfig) -> str:
    """Each GGUF name is one of the architecture's, and belongs to the Hugging Face name that the converter makes it of.

    Of a family without GGUF files the names of Hugging Face's file are looked up for what they are in a Llama or a BERT.
    """
    names = family.info.gguf_architectures
    faults, compared, silent = [], 0, 0
    for name in names or (("llama" if family.info.kind == "decoder" else "bert"),):
        architecture = _architecture(name)
        if names:
            known = _known(architecture, config.num_hidden_layers)
            ours = _gguf_map(family, config).tensors
            faults += [f"{tensor} is no tensor of {name}" for tensor in ours if _stem(tensor) not in known]
        table = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
        for tensor, found in _pairs(family, config):
            expected = table.get_name(EXPERT_NUMBER.sub(".experts.", tensor), SUFFIXES)
            if expected is None or not found:
                silent += 1
                continue
            compared += 1
            if expected not in found:
                faults.append(f"{tensor} is {expected} in a GGUF of {name}, and here {', '.join(sorted(found))}")
    fail_on(faults, where="")
    if not compared:
        raise NotCheckedError("the gguf package's tables have none of the names")
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
    """Numbers of a Hugging Face file are the same in a GGUF, but for norms, which have the config's `norm_offset` added.

    A matrix may lie there transposed, and one of each expert in a stack, in their order.
    """
    ours, theirs = _gguf_map(family, config), family.map_tensor_names(config, Layout())
    source = np.random.default_rng(0)
    before = {name: source.integers(0, 1 << 20, shape).astype(np.float64) for name, shape in theirs.tensors.items()}
    after = to_checkpoint(ours, to_parameters(theirs, before))
    filled, faults, count = _filled(ours), [], 0
    for name, parameters in _filled(theirs).items():
        same = [other for other, others in filled.items() if others == parameters]
        if len(same) != 1:
            continue
        count += 1
        normed = name.endswith("norm.weight") or any("norm" in parameter for parameter in parameters)
        offset = getattr(config, "norm_offset", 0.0) if normed else 0.0
        found, expected = np.asarray(after[same[0]]), before[name] + offset
        if (expert := EXPERT_NUMBER.search(name)) and found.ndim == expected.ndim + 1:
            found = found[int(expert[1])]
        if not any(np.array_equal(found, side) for side in (expected, expected.T)):
            faults.append(f"{same[0]} has other numbers than {name}")
    fail_on(faults, where="")
    return f"{count} tensors"


def _filled(name_map: NameMap) -> dict[str, frozenset[str]]:
    """Tensor of the file → the parameters that it fills."""
    return {name: frozenset(edge.parameter for edge in name_map.edges(name)) for name in name_map.tensors}


def _heads(parameter: str, config: ModelConfig) -> int:
    return config.num_key_value_heads if "k_proj" in parameter else config.num_attention_heads


def _permuted(array: Any, heads: int) -> Any:
    """Split halves of each head as adjacent pairs: row 2i of a head is its row i, row 2i + 1 the row i + half."""
    half = array.shape[0] // heads // 2
    order = [head * 2 * half + part * half + row for head in range(heads) for row in range(half) for part in range(2)]
    return array[order]


def _gguf_map(family: Family, config: ModelConfig) -> NameMap:
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


def _pairs(family: Family, config: ModelConfig) -> Iterator[tuple[str, set[str]]]:
    """Each tensor of Hugging Face's file, with the names that a GGUF has for the parameters that it fills."""
    encoder = family.info.kind == "encoder"
    theirs = family.map_tensor_names(config, Layout(bare=encoder))
    ours = None if encoder else _gguf_map(family, config)
    filled: dict[str, set[str]] = defaultdict(set)
    for parameter, edges in theirs.fills.items():
        names = {other.checkpoint for other in ours.fills.get(parameter, ())} if ours else _encoders(parameter)
        for edge in edges:
            filled[edge.checkpoint] |= names
    yield from filled.items()


def _encoders(parameter: str) -> set[str]:
    """What llama.cpp calls a parameter of the core's encoder; nothing for its head."""
    match = re.fullmatch(r"(?:layers\.(\d+)\.)?(.+)\.(weight|bias)", parameter)
    if match is None or match[2] not in ENCODER:
        return set()
    block = f"blk.{match[1]}." if match[1] else ""
    return {f"{block}{ENCODER[match[2]]}.{match[3]}"}
