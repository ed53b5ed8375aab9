"""Two checkpoints side by side: what they say about themselves, and tensor by tensor how far their values are apart.

Torch-free. When one installed family claims both files, names and rows are compared in that family's own terms, so that a
GGUF and the `.apr` made from it agree; a parameter that one file has in several tensors (a stack of experts) is compared
part by part. Otherwise tensors of the same name are compared. Memory: two of these at a time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from attrs import Factory, evolve, field, frozen

from apr_train.artifact.parts import cover, read_part
from apr_train.checkpoint.checkpoint import Checkpoint, Progress, TensorView
from apr_train.checkpoint.companions import CONFIG, README
from apr_train.checkpoint.dtypes import Array, values_of
from apr_train.checkpoint.header import Header, TensorInfo, TokenizerSpec
from apr_train.checkpoint.tie import resolve_tie
from apr_train.checkpoint.tokenizer_json import tokenizer_json
from apr_train.errors import AprTrainError
from apr_train.family.name_map import Fill, NameMap
from apr_train.family.operations import Region
from apr_train.family.plugin import Family
from apr_train.family.registry import Registry

PIECE = 1 << 20
"""Elements compared at a time."""


@frozen(kw_only=True)
class Distance:
    """How far two tensors of one shape are apart."""

    max_abs: float
    mean_abs: float
    cosine: float | None
    """Of both as vectors; None when one is all zeros and they are not the same bytes, or a value is not finite."""


@frozen(kw_only=True)
class TensorDiff:
    """One tensor, on both sides or on one."""

    name: str
    """The family's parameter when both files are its, with the part that is compared; else the name in the files."""
    a: TensorInfo | None
    b: TensorInfo | None
    distance: Distance | None = None
    """None: missing on one side, or of another shape."""

    @property
    def status(self) -> str:
        """`missing in A`, `missing in B`, `shape`, `values` or `same`."""
        if self.a is None or self.b is None:
            return "missing in A" if self.a is None else "missing in B"
        if self.distance is None:
            return "shape"
        return "same" if self.distance.max_abs == 0 else "values"

    def differs(self, tolerance: float) -> bool:
        """Whether it is more than `tolerance` apart anywhere; a NaN on one side alone is."""
        return self.distance is None or not self.distance.max_abs <= tolerance


@frozen(kw_only=True)
class Field:
    """One line of metadata that is not the same on both sides."""

    name: str
    a: Any
    b: Any


@frozen(kw_only=True)
class Side:
    """One of two things to compare: a tensor as it lies in its file, or a part of a parameter."""

    info: TensorInfo
    """The tensor, or the first of those that the part comes from, with the shape of what is compared."""
    edges: tuple[Fill, ...] = ()
    """All that fill the parameter; none: the tensor as it lies."""
    part: Region | None = None
    """Of the parameter."""

    @property
    def way(self) -> tuple[object, ...]:
        """What the bytes go through: equal bytes of two sides with one way are equal values."""
        return tuple((edge.operation, edge.checkpoint_part, edge.parameter_part) for edge in self.edges), self.part

    @property
    def is_whole(self) -> bool:
        """Whether one tensor of the file is compared, all of it."""
        return not self.edges or (len(self.edges) == 1 and self.edges[0].checkpoint_part is None and self.part is None)


@frozen(kw_only=True)
class Matching:
    """Which tensors belong together, and in which order of rows."""

    family: str | None
    """The family in whose terms they are compared; None: by their names in the files."""
    reason: str
    """Why the tensors are matched so."""
    sides: tuple[Mapping[str, Side], Mapping[str, Side]] = field(repr=False)
    left_out: tuple[str, ...] = ()
    """Tensors that the family does not use or that repeat another one."""
    config: tuple[Mapping[str, Any], Mapping[str, Any]] = field(default=Factory(lambda: ({}, {})), repr=False)


def match(a: Checkpoint, b: Checkpoint, registry: Registry, *, arch: str | None = None) -> Matching:
    """Put tensors of the same meaning side by side.

    Raises:
        PluginError: for an `arch` that is not installed.
    """
    family, reason = _common_family(a.header, b.header, registry, arch)
    if family is not None:
        try:
            return _by_parameter(family, resolve_tie(a), resolve_tie(b), reason)
        except AprTrainError as error:
            if arch is not None:
                raise
            reason = f"{family.name} claims both, but {error}"
    sides = (_by_name(a.header), _by_name(b.header))
    return Matching(family=None, reason=reason, sides=sides, config=(a.header.config, b.header.config))


def _common_family(a: Header, b: Header, registry: Registry, arch: str | None) -> tuple[Family | None, str]:
    if arch is not None:
        return registry.family(arch), "as --arch says"
    mine, other = ([family.name for family in registry.claimants(header)] for header in (a, b))
    common = [name for name in mine if name in other]
    if len(common) == 1:
        return registry.family(common[0]), "the only installed family that claims both"
    claims = f"A: {', '.join(mine) or 'none'}; B: {', '.join(other) or 'none'}"
    return None, f"not exactly one installed family claims both ({claims})"


def _by_name(header: Header) -> dict[str, Side]:
    return {name: Side(info=tensor) for name, tensor in header.tensors.items()}


def _by_parameter(family: Family, a: Header, b: Header, reason: str) -> Matching:
    configs = [family.build_config(header=header) for header in (a, b)]
    maps = [
        family.map_tensor_names(config, family.info.layout_of(header)) for config, header in zip(configs, (a, b), strict=True)
    ]
    sides = (_parameters(a, maps[0], maps[1]), _parameters(b, maps[1], maps[0]))
    left_out = tuple(
        f"{name} ({letter})"
        for letter, header, name_map in (("A", a, maps[0]), ("B", b, maps[1]))
        for name in header.tensors
        if name in name_map.by_checkpoint and not name_map.edges(name)
    )
    config = (configs[0].to_dict(), configs[1].to_dict())
    return Matching(family=family.name, reason=reason, sides=sides, left_out=left_out, config=config)


def _parameters(header: Header, name_map: NameMap, other: NameMap) -> dict[str, Side]:
    """Parts of parameters, in the file's order; a tensor that the family does not know, or of another shape, as it lies."""
    found: dict[str, Side] = {}
    done: set[str] = set()
    for name, tensor in header.tensors.items():
        if name not in name_map.by_checkpoint:
            found[name] = Side(info=tensor)
        for parameter in {edge.parameter: None for edge in name_map.edges(name)}:
            if parameter not in done:
                found |= _sides(header, name_map.fills[parameter], other.fills.get(parameter, ()))
                done.add(parameter)
    return found


def _sides(header: Header, edges: tuple[Fill, ...], other: tuple[Fill, ...]) -> dict[str, Side]:
    """The parts of one parameter; where a tensor is missing or of another shape, the tensors as they lie."""
    parameter = edges[0].parameter
    if not all(_fits(edge, header) for edge in edges):
        there = [edge for edge in edges if edge.checkpoint in header.tensors]
        return {_named(parameter, edge.parameter_part): Side(info=header.tensors[edge.checkpoint]) for edge in there}
    parts = _parts(edges, other)
    sources = [cover(edges, part)[0] or edges[0] for part in parts]
    return {
        _named(parameter, part): _side(header.tensors[source.checkpoint], edges, part)
        for part, source in zip(parts, sources, strict=True)
    }


def _fits(edge: Fill, header: Header) -> bool:
    tensor = header.tensors.get(edge.checkpoint)
    return tensor is not None and tensor.shape == edge.checkpoint_shape


def _parts(mine: tuple[Fill, ...], other: tuple[Fill, ...]) -> list[Region | None]:
    """The parts in which a parameter is compared: those of the file that has more; all at once if they overlap."""
    parts = [edge.parameter_part for edge in max(mine, other, key=len)]
    covered = all(cover(side, part)[0] is not None for side in (mine, other) if side for part in parts)
    return parts if covered else [None]


def _named(parameter: str, part: Region | None) -> str:
    return parameter if part is None else f"{parameter} [{part}]"


def _side(tensor: TensorInfo, edges: tuple[Fill, ...], part: Region | None) -> Side:
    shape = edges[0].parameter_shape if part is None else part.shape_of(edges[0].parameter_shape)
    share = tensor.nbytes * math.prod(shape) // max(1, tensor.elements)
    return Side(info=TensorInfo(tensor.name, tensor.dtype, shape, share), edges=edges, part=part)


def tensor_diffs(a: Checkpoint, b: Checkpoint, matching: Matching, *, progress: Progress | None = None) -> Iterator[TensorDiff]:
    """Compare all tensors in A's order, then those that only B has; `progress` is told of A's bytes.

    Raises:
        FormatError: for a tensor that cannot be read.
    """
    mine, other = matching.sides
    for name in [*mine, *(name for name in other if name not in mine)]:
        left, right = mine.get(name), other.get(name)
        found = TensorDiff(name=name, a=left.info if left else None, b=right.info if right else None)
        if left is not None and right is not None and left.info.shape == right.info.shape:
            found = evolve(found, distance=_distance(a, b, left, right))
        yield found
        if progress is not None and left is not None:
            progress(left.info.nbytes)


def _distance(a: Checkpoint, b: Checkpoint, left: Side, right: Side) -> Distance:
    stored_alike = left.info.dtype == right.info.dtype and left.is_whole and right.is_whole and left.way == right.way
    if stored_alike and _same_bytes(a.read_raw(left.info.name), b.read_raw(right.info.name)):
        return Distance(max_abs=0.0, mean_abs=0.0, cosine=1.0)
    sums = _Sums()
    for pieces in zip(_pieces(_view(a, left)), _pieces(_view(b, right)), strict=True):
        sums = sums.plus(*pieces)
    return sums.distance()


def _view(checkpoint: Checkpoint, side: Side) -> TensorView:
    """What is compared, in the family's order."""
    return read_part(checkpoint, side.edges, side.part) if side.edges else checkpoint.read(side.info.name)


def _same_bytes(a: memoryview, b: memoryview) -> bool:
    starts = range(0, len(a), 8 * PIECE)
    pieces = ((a[start : start + 8 * PIECE], b[start : start + 8 * PIECE]) for start in starts)
    return len(a) == len(b) and all(np.array_equal(np.frombuffer(x, np.uint8), np.frombuffer(y, np.uint8)) for x, y in pieces)


def _pieces(view: TensorView) -> Iterator[Array]:
    """The values as float64, some at a time."""
    flat = np.ascontiguousarray(view.data).reshape(-1)
    for start in range(0, max(1, flat.size), PIECE):
        piece = flat[start : start + PIECE]
        yield values_of(piece, view.dtype).astype(np.float64)


@frozen
class _Sums:
    """Running sums over the pieces that were compared so far."""

    count: int = 0
    largest: float = 0.0
    total: float = 0.0
    products: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """a·b, a·a, b·b."""

    def plus(self, a: Array, b: Array) -> _Sums:
        """The sums with one more piece of both tensors; NaN against NaN and ∞ against the same ∞ are no difference."""
        with np.errstate(invalid="ignore", over="ignore"):
            apart = np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0.0, np.abs(a - b))
            products = [float(np.dot(x, y)) for x, y in ((a, b), (a, a), (b, b))]
        return _Sums(
            self.count + a.size,
            float(np.maximum(self.largest, apart.max(initial=0.0))),
            self.total + float(apart.sum()),
            (self.products[0] + products[0], self.products[1] + products[1], self.products[2] + products[2]),
        )

    def distance(self) -> Distance:
        """The distance that the sums come to."""
        dot, mine, other = self.products
        known = math.isfinite(dot) and 0 < mine < math.inf and 0 < other < math.inf
        # √mine·√other, not √(mine·other): that product would overflow first
        cosine = dot / (math.sqrt(mine) * math.sqrt(other)) if known else None
        return Distance(max_abs=self.largest, mean_abs=self.total / max(1, self.count), cosine=cosine)


def config_diff(matching: Matching) -> list[Field]:
    """The numbers of the architecture that are not the same: as the family reads them, else as the files say them."""
    return _fields(*matching.config)


def about_diff(a: Header, b: Header) -> list[Field]:
    """What the files say about themselves apart from the architecture: container, names, order of rows, provenance."""
    return _fields(_about(a), _about(b))


def _about(header: Header) -> dict[str, Any]:
    facts = {"format": header.format, "class": header.hf_class, "architecture": header.architecture}
    facts |= {"names": header.names, "rope rows": header.rope_rows, "head": header.tie.reason}
    facts |= {"beside the weights": ", ".join(sorted(_companions(header))) or None}
    return facts | {f"provenance.{name}": value for name, value in header.provenance.items()}


def _fields(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[Field]:
    names = [*a, *(name for name in b if name not in a)]
    return [Field(name=name, a=a.get(name), b=b.get(name)) for name in names if a.get(name) != b.get(name)]


_BOOKKEEPING = frozenset({"torch_dtype", "transformers_version"})
"""What the files say about how they were written, and not about the model."""


def companion_diff(a: Header, b: Header, matching: Matching) -> list[Field]:
    """What the files beside the weights say differently, `FILE [KEY]`, of files that both sides have.

    Of config.json the keys are left out that are the architecture's: `config_diff` has them.
    """
    mine, other = _companions(a), _companions(b)
    if CONFIG in mine and CONFIG in other:
        keys = (mine[CONFIG].keys() | other[CONFIG].keys()) - matching.config[0].keys() - matching.config[1].keys()
        for side, header in ((mine, a), (other, b)):
            side[CONFIG] = {key: side[CONFIG].get(key, header.config.get(key)) for key in sorted(keys)}
    fields = [
        Field(name=f"{name} [{item.name}]", a=item.a, b=item.b)
        for name in sorted(mine.keys() & other.keys())
        for item in _fields(mine[name], other[name])
        if item.name not in _BOOKKEEPING
    ]
    templates = [None if side.tokenizer is None else side.tokenizer.chat_template for side in (a, b)]
    if templates[0] != templates[1] and None not in templates:
        fields.append(Field(name="chat template", a=templates[0], b=templates[1]))
    return fields


def _companions(header: Header) -> dict[str, Mapping[str, Any]]:
    kept = {**header.companions, **(header.tokenizer.companions if header.tokenizer is not None else {})}
    return {name: content for name, content in kept.items() if isinstance(content, Mapping) and name != README}


_SHOWN = 3


def tokenizer_diff(a: TokenizerSpec | None, b: TokenizerSpec | None) -> list[Field]:
    """What is not the same: presence, kind, special ids, strings of ids, merges.

    How the text is cut before (the pre-tokenizer) is compared only where both files spell it out.
    """
    if a is None or b is None:
        return [] if a is b else [Field(name="tokenizer", a=_size(a), b=_size(b))]
    fields = [Field(name="special ids", a=dict(a.special_ids), b=dict(b.special_ids))]
    try:
        mine, other = tokenizer_json(a), tokenizer_json(b)
    except AprTrainError:  # of a kind that cannot be rebuilt: the data itself is compared
        fields += [Field(name="kind", a=a.model, b=b.model), Field(name="vocabulary", a=a.vocabulary, b=b.vocabulary)]
        return [_short(item) for item in fields if item.a != item.b]
    fields += [Field(name="tokens", a=_tokens(mine), b=_tokens(other)), Field(name="merges", a=_merges(mine), b=_merges(other))]
    if a.json is not None and b.json is not None:
        fields += [Field(name=key, a=mine.get(key), b=other.get(key)) for key in ("normalizer", "pre_tokenizer")]
    return [_short(item) for item in fields if item.a != item.b]


def _size(spec: TokenizerSpec | None) -> str:
    return "none" if spec is None else f"{spec.size} tokens"


def _tokens(content: Mapping[str, Any]) -> dict[int, str]:
    """Id → string, added tokens included."""
    vocabulary = content.get("model", {}).get("vocab", {})
    pairs = vocabulary.items() if isinstance(vocabulary, Mapping) else ((item[0], i) for i, item in enumerate(vocabulary))
    found = {index: token for token, index in pairs}
    return found | {item["id"]: item["content"] for item in content.get("added_tokens") or ()}


def _merges(content: Mapping[str, Any]) -> list[str]:
    """Each as `a b`, whichever way it is written."""
    merges = content.get("model", {}).get("merges") or ()
    return [merge if isinstance(merge, str) else " ".join(merge) for merge in merges]


def _short(item: Field) -> Field:
    """The field with a long value cut down to the number of its entries and the first that differ."""
    if isinstance(item.a, dict) and item.name == "tokens":
        keys = sorted(key for key in item.a.keys() | item.b.keys() if item.a.get(key) != item.b.get(key))
    elif isinstance(item.a, list | tuple):
        longest = max(len(item.a), len(item.b))
        keys = [i for i in range(longest) if item.a[i : i + 1] != item.b[i : i + 1]]
    else:
        return item
    return Field(name=f"{item.name} ({len(keys)} differ)", a=_some(item.a, keys), b=_some(item.b, keys))


def _some(values: Any, keys: list[int]) -> str:
    held = values if isinstance(values, dict) else dict(enumerate(values))
    shown = ", ".join(f"{key}: {held[key]!r}" if key in held else f"{key}: –" for key in keys[:_SHOWN])
    return f"{len(held)} in all; {shown}"
