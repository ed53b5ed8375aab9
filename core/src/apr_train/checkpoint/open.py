"""Opening a checkpoint: the container is known by its first bytes, never by the file's ending."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import cast

import attrs

from apr_train import rules
from apr_train.checkpoint.checkpoint import Checkpoint
from apr_train.checkpoint.header import RopeRows
from apr_train.errors import FormatError

KNOWN = ".apr, safetensors, GGUF, or a Hugging Face folder"
SHARD = re.compile(r".+-\d+-of-\d+\.apr")
FOREIGN = {
    b"PK\x03\x04": "a zip archive, as torch.save makes it: pickle is never read, convert it to safetensors",
    b"\x80\x02": "a pickle file: pickle is never read, convert it to safetensors",
    b"\x80\x04": "a pickle file: pickle is never read, convert it to safetensors",
    b"ggjt": "an old GGML file: convert it to GGUF with llama.cpp",
    b"lmgg": "an old GGML file: convert it to GGUF with llama.cpp",
}


def open_checkpoint(path: str | os.PathLike[str], *, verify: bool = True, rope_layout: RopeRows | None = None) -> Checkpoint:
    """Open a checkpoint file or folder: `.apr`, safetensors or GGUF, decided by the first bytes.

    `verify=False` skips the checksum over an `.apr`'s data (the other containers have none). `rope_layout` is the
    user's word on the order of the rows of q and k, for a file that does not say.

    Raises:
        FormatError: a missing or empty file, an unknown magic, or a file that is not what it says it is.
    """
    path = Path(path)
    checkpoint = _open(path, verify=verify)
    if rope_layout is not None:
        _choose_rope_rows(checkpoint, rope_layout)
    return checkpoint


def _open(path: Path, *, verify: bool) -> Checkpoint:
    if _is_folder(path):
        return _open_folder(path, verify=verify)
    magic = _magic(path)
    if magic[:4] == b"GGUF":
        from apr_train.checkpoint.gguf import GgufReader

        return GgufReader.open(path)
    if magic[:3] == b"APR" or _is_manifest(magic):
        return _open_apr(path, verify=verify)
    if magic[8:] == b"{":
        from apr_train.checkpoint.safetensors import SafetensorsReader

        return SafetensorsReader.open(path)
    hint = next((f"It looks like {what}." for start, what in FOREIGN.items() if magic.startswith(start)), None)
    raise FormatError("not a checkpoint", rule=rules.INIT_004, path=path, expected=KNOWN, found=repr(magic[:4]), hint=hint)


def _is_manifest(magic: bytes) -> bool:
    """A JSON file: a `{`, which is also how a safetensors header of 123 bytes (or 379, …) begins, so both are looked at."""
    is_header_length = int.from_bytes(magic[:8], "little") < 1 << 32
    return magic[:1] == b"{" and not (is_header_length and magic[8:] == b"{")


def _open_apr(path: Path, *, verify: bool) -> Checkpoint:
    from apr_train.checkpoint.apr import open_apr

    return cast(Checkpoint, open_apr(path, verify=verify))


def _open_folder(path: Path, *, verify: bool) -> Checkpoint:
    """A Hugging Face folder, or one that holds one `.apr` (in shards or not) and no safetensors."""
    found = sorted(path.glob("*.apr"))
    if found and not any(path.glob("*.safetensors")) and (len(found) == 1 or SHARD.fullmatch(found[0].name)):
        return _open_apr(found[0], verify=verify)
    from apr_train.checkpoint.safetensors import SafetensorsReader

    return SafetensorsReader.open(path)


def _is_folder(path: Path) -> bool:
    """False for a regular file; anything else (a pipe would block the open) is refused."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise _unreadable(path, error) from error
    if not stat.S_ISDIR(mode) and not stat.S_ISREG(mode):
        raise FormatError("neither a file nor a folder", rule=rules.INIT_003, path=path, expected=KNOWN)
    return stat.S_ISDIR(mode)


def _unreadable(path: Path, error: OSError) -> FormatError:
    if isinstance(error, FileNotFoundError):
        return FormatError("no such file", rule=rules.INIT_003, path=path, expected=KNOWN)
    return FormatError(f"cannot be read: {error.strerror}", rule=rules.INIT_003, path=path)


def _magic(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            magic = file.read(9)
    except OSError as error:
        raise _unreadable(path, error) from error
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
