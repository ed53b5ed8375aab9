"""Quantisations that only llama.cpp itself writes, through llama-cpp-python where it is installed. Torch-free."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from apr_train.errors import ConfigError, OutputError

K_QUANTS: Mapping[str, str] = {"q4_k_m": "Q4_K_M"}
"""What `--dtype` calls them → what llama-quantize does, and `gguf.LlamaFileType` after MOSTLY_."""
_PACKAGE = "llama-cpp-python"


def llama_cpp(name: str, source: Path, target: Path) -> ModuleType:
    """The package, for the quantisation `name` of `K_QUANTS`.

    Raises:
        ConfigError: it is not installed; with the commands that do the same.
    """
    if find_spec("llama_cpp") is None:
        plain = target.with_name(f"{target.stem}-f32.gguf")
        first = f"apr-train export {shlex.quote(str(source))} --format gguf --dtype f32 -o {shlex.quote(str(plain))}"
        second = f"llama-quantize {shlex.quote(str(plain))} {shlex.quote(str(target))} {K_QUANTS[name]}"
        raise ConfigError(
            "only llama.cpp itself writes this quantisation",
            where="--dtype",
            expected=f"{_PACKAGE}, which is not installed",
            found=name,
            hint=f"pip install {_PACKAGE}, or: {first} && {second}",
        )
    return import_module("llama_cpp")


def quantise(package: ModuleType, name: str, source: Path, target: Path) -> None:
    """Write `target` from the float32 GGUF `source`.

    Raises:
        OutputError: llama.cpp refused, or could not write.
    """
    from gguf import LlamaFileType

    said: list[str] = []
    log = package.llama_log_callback(lambda level, text, data: said.append(text.decode("utf-8", "replace")))
    package.llama_log_set(log, None)
    parameters = package.llama_model_quantize_default_params()
    parameters.ftype = int(LlamaFileType[f"MOSTLY_{K_QUANTS[name]}"])
    try:
        status = package.llama_model_quantize(str(source).encode(), str(target).encode(), parameters)
    finally:
        package.llama_log_set(package.llama_log_callback(), None)
    if status:
        raise OutputError("llama.cpp could not quantise", where=target, found="".join(said[-3:]).strip() or f"status {status}")
