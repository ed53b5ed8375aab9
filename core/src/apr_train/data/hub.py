"""A data set of the Hugging Face Hub that is given for `--data`: nothing is fetched, the command that does it is named."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

_ADDRESS = re.compile(
    r"(?:hf:/{1,2}|(?:https?:/{1,2})?(?:www\.)?(?:huggingface\.co|hf\.co)/)datasets/(?P<name>[\w.-]+(?:/[\w.-]+)?)(?:[/@?#].*)?"
)
_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
_ENDING = re.compile(r"\.[a-z]{1,5}")


def of_address(text: str) -> str | None:
    """How the data set of an address comes onto the disk; None for what is no address of one."""
    match = _ADDRESS.fullmatch(text)
    return None if match is None else f"Nothing is fetched here: {_download(match['name'])}"


def of_name(path: Path) -> str | None:
    """How a data set comes onto the disk whose name a path may be, from the folder one is in; None for another path."""
    here = Path.cwd()
    name = str(path.relative_to(here)) if path.is_relative_to(here) else str(path)
    if not _NAME.fullmatch(name) or ".." in name or _ENDING.fullmatch(path.suffix) or path.parent.exists():
        return None
    return f"If it is a data set's name on the Hugging Face Hub: {_download(name)}"


def _download(name: str) -> str:
    folder = name.rpartition("/")[2]
    command = shlex.join(["hf", "download", "--repo-type", "dataset", name, "--local-dir", folder])
    return f"download it first: {command} (pip install huggingface_hub), then give {folder}"
