"""Opening a checkpoint or a tokenizer: the container is known by its first bytes, never by the file's ending."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import attrs

from apr_train import rules
from apr_train.checkpoint.adapter import folder_finding, tensor_finding
from apr_train.checkpoint.checkpoint import Checkpoint
from apr_train.checkpoint.files import LARGEST_POINTER, open_regular, parse_json, refuse_pointer
from apr_train.checkpoint.folder import ADAPTER, file_names, find_weights, only_apr
from apr_train.checkpoint.foreign import foreign, not_a_checkpoint
from apr_train.checkpoint.given import (
    KNOWN,
    TOKENIZER,
    absent,
    folder_hint,
    looks_like_json,
    no_tokenizer,
    not_weights,
    one_of_several,
    split_gguf,
)
from apr_train.checkpoint.header import RopeRows, TokenizerSpec
from apr_train.checkpoint.huggingface import TOKENIZER_FILES, tokenizer_of
from apr_train.checkpoint.tokenizer_json import spec_from_json
from apr_train.errors import Finding, FormatError


def open_checkpoint(
    path: str | os.PathLike[str], *, verify: bool = True, rope_layout: RopeRows | None = None, whole: bool = True
) -> Checkpoint:
    """Open a checkpoint file or folder: `.apr`, safetensors or GGUF, decided by the first bytes.

    `verify=False` skips the checksum over an `.apr`'s data (the other containers have none). `rope_layout` is the
    user's word on the order of the rows of q and k, for a file that does not say. `whole=False` also opens what is a part
    of a model, one file of several or an adapter, with a warning in the header's findings: for who looks at files.

    Raises:
        FormatError: a missing or empty file, an unknown magic, a file that is not what it says it is, or a part of a model.
    """
    path = Path(path)
    try:
        checkpoint = _open(path, verify=verify, whole=whole)
    except OSError as error:
        raise _unreadable(path, error) from error
    except FormatError as error:
        if isinstance(error.__cause__, OSError) and not error.finding.rule:
            error.amend(rule=rules.INIT_003)
        raise
    if rope_layout is not None:
        _choose_rope_rows(checkpoint, rope_layout)
    return checkpoint


def open_tokenizer(path: str | os.PathLike[str]) -> TokenizerSpec:
    """The tokenizer of a folder, of one of the files that a folder's tokenizer is kept in, or of a checkpoint.

    Raises:
        FormatError: when there is none, or it is not one.
    """
    path = Path(path)
    try:
        if _is_folder(path, TOKENIZER):
            return _tokenizer_in(path)
        if path.name in TOKENIZER_FILES:
            return _tokenizer_in(path.parent)
        if not _start(path).startswith((b"GGUF", b"APR")):
            return spec_from_json(parse_json(path), str(path))
        with open_checkpoint(path, verify=False, whole=False) as checkpoint:
            found = checkpoint.header.tokenizer
    except OSError as error:
        raise _unreadable(path, error, TOKENIZER) from error
    if found is None:
        raise FormatError("the checkpoint carries no tokenizer", rule=rules.PREFLIGHT_018, path=path, expected=TOKENIZER)
    return found


def _tokenizer_in(folder: Path) -> TokenizerSpec:
    found = tokenizer_of(folder, _config(folder))
    if found is None:
        raise no_tokenizer(folder)
    return found


def _config(folder: Path) -> dict[str, Any]:
    config = folder / "config.json"
    return parse_json(config) if config.is_file() else {}


def _warn(checkpoint: Checkpoint, finding: Finding | None, *, whole: bool) -> None:
    """Put a fault of a model into the header as a warning, where it need not be whole; else close it and raise the fault."""
    if finding is None:
        return
    if whole:
        checkpoint.close()
        raise FormatError.of([finding])
    warning = attrs.evolve(finding, severity="warning")
    checkpoint.header = attrs.evolve(checkpoint.header, findings=(*checkpoint.header.findings, warning))


def _open(path: Path, *, verify: bool, whole: bool) -> Checkpoint:
    if _is_folder(path):
        return _open_folder(path, verify=verify, whole=whole)
    part = one_of_several(path)
    if part is not None and whole:
        raise part
    checkpoint = _open_file(path, verify=verify)
    part = part or split_gguf(path, getattr(checkpoint, "metadata", {}))
    if part is not None:
        _warn(checkpoint, part.finding, whole=whole)
    _warn(checkpoint, tensor_finding(path, checkpoint.header.tensors), whole=whole)
    return checkpoint


def _open_file(path: Path, *, verify: bool) -> Checkpoint:
    magic = _magic(path)
    if magic[:4] == b"GGUF":
        from apr_train.checkpoint.gguf import GgufReader

        return GgufReader.open(path)
    if looks_like_json(magic) and (error := not_weights(path)) is not None:
        raise error
    if magic[:3] == b"APR" or looks_like_json(magic):
        return _open_apr(path, verify=verify)
    if magic[8:9] == b"{":
        from apr_train.checkpoint.safetensors import SafetensorsReader

        return SafetensorsReader.open(path)
    raise foreign(magic, path) or not_a_checkpoint(magic, path, folder_hint(path))


def _open_apr(path: Path, *, verify: bool) -> Checkpoint:
    from apr_train.checkpoint.apr import open_apr

    return cast(Checkpoint, open_apr(path, verify=verify))


def _open_folder(path: Path, *, verify: bool, whole: bool) -> Checkpoint:
    """A Hugging Face folder, or one that holds one `.apr` (in shards or not) and no safetensors."""
    names = file_names(path)
    adapter = folder_finding(path, names)
    is_adapter = adapter is not None and adapter.severity == "error"
    if adapter is not None and is_adapter and whole:
        raise FormatError.of([adapter])
    from apr_train.checkpoint.safetensors import SafetensorsReader

    if (apr := only_apr(path, names)) is not None:
        checkpoint = _open_apr(apr, verify=verify)
    elif adapter is not None and is_adapter and find_weights(path, _config(path)) is None:
        return _open_adapter(path, names, adapter)
    else:
        checkpoint = cast(Checkpoint, SafetensorsReader.open(path))
    _warn(checkpoint, adapter, whole=whole and is_adapter)
    _warn(checkpoint, tensor_finding(path, checkpoint.header.tensors), whole=whole)
    return checkpoint


def _open_adapter(folder: Path, names: Sequence[str], finding: Finding) -> Checkpoint:
    """An adapter without a base, for who looks at files: its own weights, with the fault of a model as a warning.

    Raises:
        FormatError: that fault, where the weights are pickled or not there.
    """
    if ADAPTER not in names:
        raise FormatError.of([finding])
    from apr_train.checkpoint.safetensors import SafetensorsReader

    checkpoint = cast(Checkpoint, SafetensorsReader.open(folder / ADAPTER))
    _warn(checkpoint, finding, whole=False)
    return checkpoint


def _is_folder(path: Path, expected: str = KNOWN) -> bool:
    """False for a regular file; anything else (a pipe would block the open) is refused."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise _unreadable(path, error, expected) from error
    if not stat.S_ISDIR(mode) and not stat.S_ISREG(mode):
        raise FormatError("neither a file nor a folder", rule=rules.INIT_003, path=path, expected=expected)
    return stat.S_ISDIR(mode)


def _unreadable(path: Path, error: OSError, expected: str = KNOWN) -> FormatError:
    if isinstance(error, FileNotFoundError) and not os.path.lexists(path):
        return absent(path, expected)
    subject = error.filename if isinstance(error.filename, str) else path
    hint = "Check its permissions, and those of the folders above it." if isinstance(error, PermissionError) else None
    return FormatError(f"cannot be read: {error.strerror}", rule=rules.INIT_003, path=subject, hint=hint)


def _start(path: Path) -> bytes:
    with open_regular(path) as file:
        return file.read(LARGEST_POINTER)


def _magic(path: Path) -> bytes:
    magic = _start(path)
    refuse_pointer(magic, path)
    if len(magic) < 9:
        what = f"{len(magic)} bytes" if magic else "an empty file"
        raise FormatError("too short to be a checkpoint", rule=rules.INIT_004, path=path, expected=KNOWN, found=what)
    return magic


def _choose_rope_rows(checkpoint: Checkpoint, rope_layout: RopeRows) -> None:
    header = checkpoint.header
    if header.rope_rows not in (None, rope_layout):
        raise FormatError(
            "the file says another order of the rows of q and k",
            path=header.path,
            field="rope rows",
            rule=rules.PREFLIGHT_008,
            expected=f"--rope-layout {header.rope_rows}, or none",
            found=rope_layout,
        )
    checkpoint.header = attrs.evolve(header, rope_rows=rope_layout)
