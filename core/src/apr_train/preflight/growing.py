"""Tokens that a run adds to the vocabulary of its checkpoint: whether that can be, and the checkpoint with their rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import attrs

from apr_train import rules
from apr_train.checkpoint.checkpoint import Checkpoint
from apr_train.checkpoint.grown import Grown, Growth, grow
from apr_train.checkpoint.header import Header
from apr_train.data.added_tokens import FLAG, read_tokens, with_tokens
from apr_train.data.tokenizer import Tokenizer, build_tokenizer
from apr_train.errors import AprTrainError, Finding
from apr_train.family.config import ModelConfig
from apr_train.family.name_map import Ignored, NameMap
from apr_train.family.plugin import Family
from apr_train.family.registry import Registry
from apr_train.preflight.config_rules import bogus_values, config_from_file
from apr_train.preflight.family_rules import choose_family
from apr_train.preflight.opening import given_tokenizer, tied_header
from apr_train.preflight.optimizer_rules import parameter_groups
from apr_train.preflight.tensor_rules import tensor_report
from apr_train.run.provenance import added_in
from apr_train.run.resume import Resume
from apr_train.run.settings import ModelSettings, NewRows, Settings

MEAN: NewRows = "mean"
"""What new rows begin as unless said otherwise: k of them beside n then raise the loss on old text by ln(1 + k/n) at most."""
_VOCABULARY = "vocab_size"


def has_grown(settings: Settings, checkpoint: Checkpoint | None, resume: Resume | None) -> bool:
    """Whether the checkpoint's own tokenizer has the run's new tokens, whatever `--tokenizer` names."""
    goes_on = resume is not None and resume.checkpoint is not None
    return settings.model.add_tokens is not None and (goes_on or isinstance(checkpoint, Grown))


def grown_source(
    settings: Settings, checkpoint: Checkpoint | None, resume: Resume | None
) -> tuple[Checkpoint | None, tuple[Finding, ...]]:
    """What a run starts from, with the rows of `--add-tokens`; and what stands against them, which leaves it as it is.

    A run that goes on has them in its own checkpoint. Of a checkpoint, a tokenizer or a config with faults of its own the
    rest of the preflight tells; nothing grows then.
    """
    model = settings.model
    if model.add_tokens is None or has_grown(settings, checkpoint, resume):
        return checkpoint, ()
    if settings.lora.lora_rank is not None:
        return checkpoint, (_with_adapters(),)
    if checkpoint is None:
        return None, () if model.init is not None else (_no_base(),)
    try:
        tokens = read_tokens(model.add_tokens)
        return _grown(checkpoint, settings, model.add_tokens, tokens), ()
    except AprTrainError as error:
        return checkpoint, error.findings


def growth_notes(checkpoint: Checkpoint | None) -> tuple[str, ...]:
    """What is to be told of the rows that a checkpoint gets, one sentence."""
    return (f"vocabulary: {checkpoint.growth}",) if isinstance(checkpoint, Grown) else ()


def added_tokens(settings: Settings, checkpoint: Checkpoint | None, resume: Resume | None) -> Mapping[str, int]:
    """The tokens that a run adds, with their ids; of one that goes on, as its checkpoint notes them."""
    if isinstance(checkpoint, Grown):
        return checkpoint.growth.tokens
    return added_in(checkpoint.header.extra) if checkpoint is not None and has_grown(settings, checkpoint, resume) else {}


def _grown(checkpoint: Checkpoint, settings: Settings, path: str, tokens: Sequence[str]) -> Checkpoint:
    """The checkpoint with the tokens; as it is, where something else is wrong with it.

    Raises:
        TokenizerError: TOKENS-001, for tokens that cannot be added; TOKENS-002, for a model whose rows cannot be told, or are
            frozen.
    """
    model = settings.model
    try:
        header = tied_header(checkpoint)
        tokenizer = _tokenizer(model, header)
        mapped = _mapped(model, header)
    except AprTrainError:
        return checkpoint
    if tokenizer is None or mapped is None:
        return checkpoint
    family, config, name_map = mapped
    spec = with_tokens(tokenizer, tokens, path)
    known, before = tokenizer.size, name_map.sizes[_VOCABULARY]
    if known > before:
        return checkpoint  # ARCH-010 is about that
    ids = dict(zip(tokens, range(known, spec.size), strict=True))
    rows = max(before, spec.size)
    pieces = _pieces(tokenizer, ids) if model.new_rows == "pieces" else {}
    names = _with_rows(name_map, header)
    frozen = parameter_groups(settings, family, config).frozen
    if still := [name for name in sorted(frozen) if any(edge.checkpoint in names for edge in name_map.fills.get(name, ()))]:
        raise AprTrainError.of([_frozen(still)])
    return grow(
        checkpoint,
        Growth(tokenizer=spec, tokens=ids, known=known, before=before, rows=rows, tensors=names, pieces=pieces),
        header,
    )


def _tokenizer(model: ModelSettings, header: Header) -> Tokenizer | None:
    """The tokenizer of the run before it has new tokens; None where there is none."""
    spec = header.tokenizer if model.tokenizer is None else given_tokenizer(model.tokenizer)
    return None if spec is None else build_tokenizer(spec)


def _mapped(model: ModelSettings, header: Header) -> tuple[Family, ModelConfig, NameMap] | None:
    """Family, config, and the map of the file's tensors; None where family or config are not known."""
    family, _ = choose_family(Registry.discover(), model.arch, header)
    if family is None or bogus_values(header):
        return None
    config, _ = config_from_file(family, header)
    name_map = None if config is None else tensor_report(header, family, config).name_map
    return None if config is None or name_map is None else (family, config, name_map)


def _with_rows(name_map: NameMap, header: Header) -> frozenset[str]:
    """The tensors of the file that have a row for each token: those whose first size grows with the vocabulary.

    Raises:
        TokenizerError: TOKENS-002, when none does, or one grows in another dimension.
    """
    size = name_map.sizes[_VOCABULARY]
    other = attrs.evolve(name_map, sizes={**name_map.sizes, _VOCABULARY: size + 1})
    shapes = {name: (_shape(name_map, name), _shape(other, name)) for name in header.tensors if name in name_map.by_checkpoint}
    growing = {name: (before, after) for name, (before, after) in shapes.items() if before != after}
    for name, (before, after) in growing.items():
        if after != (size + 1, *before[1:]):
            raise _unknown_rows(header, f"{name} {list(before)}")
    if not growing:
        raise _unknown_rows(header, "no tensor of the vocabulary's size")
    return frozenset(growing)


def _shape(name_map: NameMap, name: str) -> tuple[int, ...]:
    """Of a tensor of the file; nothing for one that the model does not use."""
    entry = name_map.by_checkpoint[name][0]
    return () if isinstance(entry, Ignored) else entry.checkpoint_shape


def _pieces(tokenizer: Tokenizer, ids: dict[str, int]) -> dict[int, tuple[int, ...]]:
    """New id → the ids of its text; a text of nothing but unknown words says nothing."""
    unknown = {tokenizer.special_ids.get("unk")}
    texts = tokenizer.encode_batch(list(ids))
    known = (tuple(piece for piece in text if piece not in unknown) for text in texts)
    return {index: text for index, text in zip(ids.values(), known, strict=True) if text}


def _unknown_rows(header: Header, found: str) -> AprTrainError:
    return AprTrainError(
        "which rows of this model are its tokens' cannot be told",
        where=header.path,
        rule=rules.TOKENS_002,
        expected="matrices with a row for each token",
        found=found,
        hint=f"Leave {FLAG} out.",
    )


def _no_base() -> Finding:
    return Finding(
        rule=rules.TOKENS_002,
        subject=FLAG,
        problem="a model from scratch has no vocabulary that could grow",
        expected="--init BASE",
        found="a model from scratch",
        hint="Give a tokenizer that has the tokens with --tokenizer, and --vocab-size.",
    )


def _with_adapters() -> Finding:
    return Finding(
        rule=rules.TOKENS_002,
        subject=FLAG,
        problem="adapters leave embedding and head as they are: new rows would never be learnt, nor be in the adapter",
        expected="no --lora-rank",
        found="both",
        hint="Train the new tokens with all weights first; its model.apr is a base for adapters.",
    )


def _frozen(names: Sequence[str]) -> Finding:
    return Finding(
        rule=rules.TOKENS_002,
        subject=FLAG,
        problem="rows of new tokens would be frozen: they would stay what they begin as",
        expected="groups that freeze no row of a token",
        found=f"an [[optimizer.group]] that freezes {', '.join(names)}",
        hint="Freeze something else; or learn the tokens in one run, and freeze in the next, on its model.apr.",
    )
