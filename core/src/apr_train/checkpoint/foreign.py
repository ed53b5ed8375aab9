"""Files of other programs in a checkpoint's place, known by their first bytes: what they are, and what to do."""

from __future__ import annotations

from pathlib import Path

from apr_train import rules
from apr_train.checkpoint.given import KNOWN, how_to_convert
from apr_train.errors import FormatError

_PICKLED = (b"PK\x03\x04", b"\x80\x02", b"\x80\x04")
_KINDS = {
    b"PK\x03\x04": "a zip archive, as torch.save makes it: pickle is never read, convert it to safetensors",
    b"\x80\x02": "a pickle file: pickle is never read, convert it to safetensors",
    b"\x80\x04": "a pickle file: pickle is never read, convert it to safetensors",
    b"ggjt": "an old GGML file: convert it to GGUF with llama.cpp",
    b"lmgg": "an old GGML file: convert it to GGUF with llama.cpp",
    b"\x89HDF": "TensorFlow weights (HDF5): fetch the model's safetensors",
    b"\x1f\x8b": "a gzip archive: unpack it first",
    b"\x28\xb5\x2f\xfd": "a zstd archive: unpack it first",
}
_PAGE = (b"<!doctype", b"<html")
"""How a web page begins, in lower case; its own case and the blanks before it are free."""


def foreign(start: bytes, path: Path) -> FormatError | None:
    """The error for a file that begins as another program's; None for any other.

    Only for what is no checkpoint by its own marks: a safetensors header of 640 bytes begins as a pickle file does.
    """
    if start.lstrip().lower().startswith(_PAGE):
        return not_a_checkpoint(start, path, "It looks like a web page: the download went wrong, fetch the file again.")
    hint = next((f"It looks like {what}." for magic, what in _KINDS.items() if start.startswith(magic)), None)
    if hint is None:
        return None
    if start.startswith(_PICKLED):
        hint += f" {how_to_convert(path.parent, [path.name])}"
    return not_a_checkpoint(start, path, hint)


def not_a_checkpoint(start: bytes, path: Path, hint: str | None) -> FormatError:
    """The error for a file that begins as no checkpoint does."""
    return FormatError("not a checkpoint", rule=rules.INIT_004, path=path, expected=KNOWN, found=repr(start[:4]), hint=hint)
