"""What a GGUF of a checkpoint will hold, decided before a byte is written: keys, tensors, their types. Torch-free.

The keys are read back here by the reader that opens any GGUF: what they cannot say of the config, because llama.cpp has no
key for it, is refused, so that no file computes something else than its source.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import attrs
import numpy as np
from attrs import field, frozen

from apr_train.artifact.convert import Conversion, Move
from apr_train.artifact.provenance import OTHER
from apr_train.checkpoint import companions
from apr_train.checkpoint.dtypes import Array
from apr_train.checkpoint.gguf import header_from_gguf
from apr_train.checkpoint.gguf_rope import READERS, tables_of_scaling
from apr_train.checkpoint.gguf_writing import (
    FILE_TYPES,
    HEAD,
    QUANTISED,
    READS_WINDOW,
    GgufDtype,
    config_keys,
    quantised,
    tensor_info,
    tokenizer_keys,
    unknown_tensors,
    written_type,
)
from apr_train.checkpoint.header import Header, TensorInfo, Tie, TokenizerSpec
from apr_train.checkpoint.implied import implied_attention
from apr_train.checkpoint.rope_rows import gguf_rope_rows
from apr_train.data.tokenizer import build_tokenizer
from apr_train.errors import ConfigError, Finding, FormatError
from apr_train.family.card import FamilyInfo, Layout
from apr_train.family.config import ModelConfig
from apr_train.family.rope_scaling import LongRopeScaling
from apr_train.preflight.config_rules import config_from_file
from apr_train.run.folder import name_of

ARCHITECTURE = "general.architecture"
_FOLDER = "Export to a folder (--format hf): that keeps everything."
_GENERAL = {"author": "author", "version": "version", "license": "license", "description": "description"}
_LICENCE = {"license_name": "general.license.name", "license_link": "general.license.link"}
_TRAINING_ONLY = frozenset({"initializer_range", "router_aux_loss_coef"})
"""Fields of a config that change nothing about the model that was trained."""


@frozen(kw_only=True)
class GgufPlan:
    """A GGUF file with everything decided; make it with `plan_gguf`."""

    conversion: Conversion = field(repr=False)
    architecture: str
    metadata: Mapping[str, Any] = field(repr=False)
    """Every key but `general.architecture`."""
    moves: Mapping[str, Move] = field(repr=False)
    """Tensor of the file → how its values come from the source."""
    made: Mapping[str, Array] = field(repr=False)
    """Tensors that are made of the config: tables of rotary factors, float32."""
    tensors: tuple[TensorInfo, ...] = field(repr=False)
    """The index, in the file's order."""
    warnings: tuple[Finding, ...] = ()

    def data(self, name: str) -> Iterable[Array | memoryview]:
        """The bytes of one tensor as they are written, in pieces.

        Raises:
            FormatError: when a value does not fit the type.
        """
        if name in self.made:
            return [self.made[name]]
        dtype = next(tensor.dtype for tensor in self.tensors if tensor.name == name)
        if dtype in QUANTISED:
            floats = self.conversion.data(attrs.evolve(self.moves[name], dtype="F32"))
            return quantised((np.asarray(piece) for piece in floats), dtype)
        return self.conversion.data(attrs.evolve(self.moves[name], dtype=dtype))

    def share(self, name: str) -> int:
        """The source's bytes that go into a tensor."""
        return self.moves[name].nbytes if name in self.moves else 0

    def kept(self, wanted: str) -> dict[str, list[str]]:
        """Type → the matrices of that type, of those that are not of the type that was asked for."""
        found: dict[str, list[str]] = {}
        for tensor in self.tensors:
            if len(tensor.shape) > 1 and tensor.dtype != wanted:
                found.setdefault(tensor.dtype, []).append(tensor.name)
        return found


def plan_gguf(conversion: Conversion, dtype: GgufDtype | None, *, path: Path) -> GgufPlan:
    """Decide what the file `path` will hold; without a dtype floats stay as they are, and blocks become F32.

    Raises:
        ConfigError: a family without GGUF names, or a config that GGUF has no keys for.
        FormatError: a source without a head, or with weights in float64.
        NameMapError: rows in an order that the family's files never have.
        TokenizerError: a tokenizer that a GGUF cannot hold.
    """
    architecture = _architecture(conversion)
    _check_whole(conversion)
    moves = _moves(conversion, architecture)
    tied = HEAD not in moves
    written = [_written(move, dtype, tied, conversion.header.path) for move in moves.values()]
    made, made_keys = _rope_tables(conversion.config, architecture, conversion.header.path)
    tensors = (*(tensor_info(name, "F32", array.shape) for name, array in made.items()), *written)
    _check_names(tensors, architecture, conversion)
    metadata = {
        **_general(conversion, tensors, dtype),
        **_config_keys(conversion, architecture, tensors, path, (made, made_keys)),
        **_tokenizer(conversion.header.tokenizer, conversion.config.vocab_size),
    }
    return GgufPlan(
        conversion=conversion,
        architecture=architecture,
        metadata=metadata,
        moves=moves,
        made=made,
        tensors=tensors,
        warnings=_warnings(conversion.config, architecture, conversion.header.path),
    )


def _architecture(conversion: Conversion) -> str:
    """`general.architecture`: the source's own where it is the family's, else the card's first."""
    info, own = conversion.family.info, conversion.header.architecture
    if not info.gguf_architectures:
        raise ConfigError(
            f"the family {info.name} has no names for a GGUF",
            where=conversion.header.path,
            field="FAMILY.gguf_architectures",
            expected="llama.cpp's name of the architecture",
            found="none",
            hint=_FOLDER,
        )
    return own if own in info.gguf_architectures else info.gguf_architectures[0]


def _check_whole(conversion: Conversion) -> None:
    if lacking := conversion.plan.fresh_parameters:
        raise FormatError(
            "the source is a base model without its head, and llama.cpp would take the embedding for it",
            path=conversion.header.path,
            field=lacking[0],
            expected=", ".join(lacking),
            found="nothing",
            hint="Train it first: a training run makes the missing part and learns it.",
        )


def _moves(conversion: Conversion, architecture: str) -> dict[str, Move]:
    """One move for each tensor, in the order of the family's name map."""
    info = conversion.family.info
    rows = gguf_rope_rows(architecture) or ("split-half" if info.never_permuted else None)
    if rows is None:
        raise ConfigError(
            f"it is not known in which order the rows of q and k lie in a GGUF of {architecture}",
            where=info.name,
            field="rope_rows",
            expected="an architecture of apr_train.checkpoint.rope_rows, or FAMILY.never_permuted",
            found=architecture,
            hint=_FOLDER,
        )
    layout = Layout(names="gguf", rope_rows=rows)
    moves = {move.target: move for move in conversion.moves(None, layout)}
    order = conversion.family.map_tensor_names(conversion.config, layout).tensors
    return {name: moves[name] for name in order if name in moves}


def _written(move: Move, dtype: GgufDtype | None, tied: bool, path: str) -> TensorInfo:
    wanted = dtype or move.dtype
    if wanted not in FILE_TYPES:
        hint = "Take --dtype f32, f16 or bf16."
        raise FormatError(f"llama.cpp reads no weights in {wanted}", path=path, field=move.tensors[0].name, hint=hint)
    return tensor_info(move.target, written_type(move.target, move.shape, wanted, tied=tied), move.shape)


def _check_names(tensors: Iterable[TensorInfo], architecture: str, conversion: Conversion) -> None:
    unknown = unknown_tensors(architecture, [tensor.name for tensor in tensors])
    if unknown:
        raise ConfigError(
            f"llama.cpp's {architecture} has no such tensor",
            where=conversion.family.name,
            field=unknown[0],
            expected=f"a tensor of gguf.MODEL_TENSORS for {architecture}",
            found=", ".join(unknown[:4]),
            hint=_FOLDER,
        )


def _rope_tables(config: ModelConfig, architecture: str, path: str) -> tuple[dict[str, Array], dict[str, Any]]:
    """The tensors and keys of a rotary scaling that llama.cpp reads from tables."""
    scaling = config.to_dict().get("rope_scaling")
    if scaling is None or scaling["rope_type"] not in READERS:
        return {}, {}
    kind: str = scaling["rope_type"]
    if architecture not in READERS[kind]:
        raise _not_said(path, "rope_scaling", f"no {kind} scaling in a GGUF of {architecture}", kind)
    theta, length = config.to_dict()["rope_theta"], config.max_position_embeddings
    rotated = getattr(config, "rotary_dim", config.head_dim)
    return tables_of_scaling(scaling, architecture, theta=theta, rotated=rotated, length=length)


def _config_keys(
    conversion: Conversion,
    architecture: str,
    tensors: Iterable[TensorInfo],
    path: Path,
    rope: tuple[Mapping[str, Array], dict[str, Any]],
) -> dict[str, Any]:
    """The keys that say the config, the kinds of layers listed only where llama.cpp would not know them.

    `rope` is the tables of a rotary scaling, and their keys.
    """
    config, info = conversion.config, conversion.family.info
    apart: list[tuple[str, Any, Any]] = []
    index = {tensor.name: tensor for tensor in tensors}
    for listed in (False, True):
        keys = config_keys(architecture, _values(config, info, listed=listed)) | rope[1]
        header = header_from_gguf(str(path), {ARCHITECTURE: architecture, **keys}, index, rope[0])
        apart = differences(config, read_back(conversion, header))
        if not apart:
            return keys
    name, expected, found = apart[0]
    raise _not_said(conversion.header.path, name, f"what a GGUF of {architecture} means: {found}", expected)


def _values(config: ModelConfig, info: FamilyInfo, *, listed: bool) -> dict[str, Any]:
    """The fields that are written: those that differ from a Llama's, or that the family's files decide."""
    fields = attrs.fields_dict(type(config))
    values = config.to_dict() | {"num_key_value_heads": config.num_key_value_heads, "head_dim": config.head_dim}
    kept = {
        name: value
        for name, value in values.items()
        if name not in fields or name in info.config_keys or value != fields[name].default
    }
    kept["rotary_dim"] = None if values.get("rope_theta") is None else getattr(config, "rotary_dim", None)
    return kept if listed else {name: value for name, value in kept.items() if name != "layer_types"}


def read_back(conversion: Conversion, header: Header) -> ModelConfig:
    """The config that the reader of GGUF files makes of a header.

    Raises:
        ConfigError: it makes none.
    """
    if header.tie.value is None:
        header = attrs.evolve(header, tie=Tie(conversion.config.tie_word_embeddings, "as the source"))
    config, findings = config_from_file(conversion.family, header)
    if config is None:
        said = findings[0]
        raise _not_said(conversion.header.path, said.field, f"{said.problem} ({said.expected})", "nothing that a GGUF can say")
    return config


def differences(config: ModelConfig, other: ModelConfig) -> list[tuple[str, Any, Any]]:
    """(field, value, the other's value) of each field that changes what is computed; numbers count as 32-bit floats."""
    names = [item.name for item in attrs.fields(type(config)) if item.name not in _TRAINING_ONLY]
    pairs = [(name, _computed(config, name), _computed(other, name)) for name in names]
    return [(name, ours, theirs) for name, ours, theirs in pairs if not _same(ours, theirs)]


def _computed(config: ModelConfig, name: str) -> Any:
    """A field with what it leaves open filled in: LongRoPE's lengths only give its factor on cos and sin."""
    value = config.stated(name)
    if not isinstance(value, LongRopeScaling):
        return value
    usual = implied_attention(value.factor, value.original_max_position_embeddings, config.max_position_embeddings)
    return attrs.evolve(value, factor=None, attention_factor=value.attention_factor or usual)


def _same(ours: Any, theirs: Any) -> bool:
    if attrs.has(type(ours)) and type(ours) is type(theirs):
        return all(_same(value, attrs.asdict(theirs)[name]) for name, value in attrs.asdict(ours).items())
    if isinstance(ours, tuple) and isinstance(theirs, tuple):
        return len(ours) == len(theirs) and all(map(_same, ours, theirs))
    if any(isinstance(value, float) for value in (ours, theirs)) and None not in (ours, theirs):
        return bool(np.float32(ours) == np.float32(theirs))
    return bool(ours == theirs)


def _not_said(path: str, name: str, expected: str, found: object) -> ConfigError:
    problem = "llama.cpp has no key for this, and a file without it would compute something else"
    return ConfigError(problem, where=path, field=name, expected=expected, found=found, hint=_FOLDER)


def _general(conversion: Conversion, tensors: Iterable[TensorInfo], dtype: GgufDtype | None) -> dict[str, Any]:
    """Name, licence and author as far as they are known, and what the weights are."""
    from gguf import GGML_QUANT_VERSION, LlamaFileType

    header, tensors = conversion.header, tuple(tensors)
    facts = {key: header.provenance.get(key) for key in (*_GENERAL, "data_source")}
    found = {"general.type": "model", "general.name": header.provenance.get("name") or name_of(header.path)}
    found |= {f"general.{name}": facts[key] for key, name in _GENERAL.items() if facts[key]}
    if facts["license"] == OTHER:
        readme = header.companions.get(companions.README, {})
        found |= {key: readme[name] for name, key in _LICENCE.items() if readme.get(name)}
    if facts["data_source"]:
        found |= {"general.dataset.count": 1, "general.dataset.0.name": facts["data_source"]}
    main = dtype or Counter(tensor.dtype for tensor in tensors if len(tensor.shape) > 1).most_common(1)[0][0]
    return {
        **found,
        "general.size_label": _size_label(tensors),
        "general.file_type": int(LlamaFileType[FILE_TYPES[main]]),
        "general.quantization_version": int(GGML_QUANT_VERSION),
    }


def _size_label(tensors: Iterable[TensorInfo]) -> str:
    from gguf import size_label

    total = expert = experts = 0
    for tensor in tensors:
        total += tensor.elements
        if "_exps." in tensor.name:
            experts = tensor.shape[0]
            expert += tensor.elements // experts
    return str(size_label(total, total - expert * experts, expert, experts))


def _tokenizer(spec: TokenizerSpec | None, rows: int) -> dict[str, Any]:
    if spec is None:
        return tokenizer_keys(None, rows=rows, first=(), last=())
    tokenizer = build_tokenizer(spec)
    first, text = list(tokenizer.start_ids), "a"
    around, plain = tokenizer.encode(text, special=True), tokenizer.encode(text)
    return tokenizer_keys(spec, rows=rows, first=first, last=around[len(first) + len(plain) :])


def _warnings(config: ModelConfig, architecture: str, path: str) -> tuple[Finding, ...]:
    window = getattr(config, "sliding_window", None)
    if window is None or architecture in READS_WINDOW:
        return ()
    return (
        Finding(
            subject=path,
            field="sliding_window",
            problem=f"llama.cpp computes full attention in a {architecture}, whatever the file says of windows",
            expected=f"a window of {window} tokens",
            found=f"the same results up to {window} tokens, other ones beyond",
            severity="warning",
        ),
    )
