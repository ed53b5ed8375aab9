"""The two files that PEFT keeps an adapter in, read and written: adapter_config.json and adapter_model.safetensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from attrs import field, frozen

from apr_train import rules
from apr_train.atomic import write_file
from apr_train.checkpoint.checkpoint import TensorView
from apr_train.checkpoint.dtypes import FLOATS, Array, plain_view, values_of
from apr_train.checkpoint.files import map_file, parse_json
from apr_train.checkpoint.folder import ADAPTER, ADAPTER_CONFIG, ADAPTER_PICKLED, ADAPTER_PREFIX
from apr_train.checkpoint.header import TensorInfo
from apr_train.checkpoint.safetensors import Extent, read_index, write_safetensors
from apr_train.errors import FormatError

_BOTH = f"{ADAPTER_CONFIG} and {ADAPTER}"


@frozen(kw_only=True)
class Adapter:
    """An adapter's config and tensors, open for reading; make it with `open_adapter`."""

    folder: Path
    config: Mapping[str, Any] = field(repr=False)
    """adapter_config.json as it is: `peft_type`, `r`, `lora_alpha`, …"""
    tensors: Mapping[str, TensorInfo] = field(repr=False)
    """By name without `base_model.model.`; all are floats."""
    note: Mapping[str, str] = field(repr=False)
    """The free texts of the weights' header: what a run here says of the base and the step."""
    _extents: Mapping[str, Extent] = field(repr=False, alias="extents")
    _bytes: memoryview = field(repr=False, alias="bytes")

    @property
    def files(self) -> tuple[Path, ...]:
        """The two files."""
        return self.folder / ADAPTER_CONFIG, self.folder / ADAPTER

    def raw(self, name: str) -> memoryview:
        """A tensor's bytes as they lie in the file."""
        extent = self._extents[name]
        return self._bytes[extent.start : extent.end]

    def read(self, name: str) -> Array:
        """A tensor's values in float32; float64 stays."""
        info = self.tensors[name]
        values = values_of(plain_view(info.dtype, info.shape, self.raw(name)).data, info.dtype)
        return values if values.dtype == np.float64 else values.astype(np.float32)


def open_adapter(folder: Path) -> Adapter:
    """Open a folder as PEFT's `save_pretrained` writes it; of the tensors only the index is read.

    Raises:
        FormatError: ADAPTER-002 where a file is missing or pickled, or a tensor is no float; else what is damaged.
    """
    if not (folder / ADAPTER).is_file():
        raise _without_weights(folder)
    if not (folder / ADAPTER_CONFIG).is_file():
        found, hint = f"no {ADAPTER_CONFIG}", "Fetch it, too: it says by which factor the adapter counts."
        raise _incomplete("an adapter without its config", folder, found, hint)
    config, index = parse_json(folder / ADAPTER_CONFIG), read_index(folder / ADAPTER)
    for name, info in index.tensors.items():
        if info.dtype not in FLOATS:
            expected = ", ".join(FLOATS)
            raise FormatError(
                "no float tensor",
                rule=rules.ADAPTER_002,
                path=folder / ADAPTER,
                field=name,
                expected=expected,
                found=info.dtype,
            )
    plain = {name: name.removeprefix(ADAPTER_PREFIX) for name in index.tensors}
    return Adapter(
        folder=folder,
        config=config,
        tensors={plain[name]: info for name, info in index.tensors.items()},
        note=index.metadata,
        extents={plain[name]: extent for name, extent in index.extents.items()},
        bytes=map_file(folder / ADAPTER),
    )


def _without_weights(folder: Path) -> FormatError:
    if (folder / ADAPTER_PICKLED).is_file():
        hint = "Open it in peft, and save it again: save_pretrained writes safetensors."
        return _incomplete("a pickled adapter, which is never read", folder, ADAPTER_PICKLED, hint)
    found = ADAPTER_CONFIG if (folder / ADAPTER_CONFIG).is_file() else "neither" if folder.is_dir() else "no such folder"
    return _incomplete(
        "no adapter", folder, found, "Give a folder as peft's save_pretrained writes it, or a run that trained one."
    )


def _incomplete(problem: str, folder: Path, found: str, hint: str) -> FormatError:
    return FormatError(problem, rule=rules.ADAPTER_002, path=folder, expected=_BOTH, found=found, hint=hint)


def write_adapter(
    folder: Path, config: Mapping[str, Any], tensors: Mapping[str, TensorView], *, note: Mapping[str, str]
) -> None:
    """Write both files into a folder that is there, each as a whole, the weights last.

    Args:
        folder: gets the files.
        config: of PEFT's kind; sorted, as PEFT writes it.
        tensors: by their names without `base_model.model.`.
        note: free texts for the header of the weights; PEFT passes over them.

    Raises:
        OutputError: when one cannot be written.
    """
    named = {f"{ADAPTER_PREFIX}{name}": view for name, view in tensors.items()}
    infos = [TensorInfo(name, view.dtype, view.data.shape, view.data.nbytes) for name, view in named.items()]
    write_file(folder / ADAPTER_CONFIG, (json.dumps(config, indent=2, sort_keys=True) + "\n").encode())
    write_safetensors(folder / ADAPTER, infos, lambda name: [named[name].data], note=note)
