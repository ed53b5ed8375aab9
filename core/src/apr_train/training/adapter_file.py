"""adapter/: what a run that trains adapters writes in place of model.apr, as PEFT saves it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attrs import field, frozen
from torch import nn

from apr_train.artifact.export import write_tokenizer
from apr_train.checkpoint.adapter_files import open_adapter, write_adapter
from apr_train.checkpoint.folder import ADAPTER
from apr_train.checkpoint.header import Kind, TokenizerSpec
from apr_train.errors import OutputError
from apr_train.family.adapter_sites import Site, short_names
from apr_train.family.name_map import NameMap
from apr_train.model.adapters import adapter_config, adapter_tensors, set_adapter
from apr_train.model.tensors import to_view
from apr_train.run.adapted import BASE_NOTE, NAME_NOTE, STEP_NOTE
from apr_train.run.folder import ADAPTER_FOLDER
from apr_train.training.checkpoint import Weights

RESULT = f"{ADAPTER_FOLDER}/{ADAPTER}"
"""Where in a run's folder it lies at the end."""

TASKS: Mapping[Kind, str] = {"decoder": "CAUSAL_LM"}
"""Kind of a model → PEFT's word for what it does; for a masked language model it has none."""


@frozen(kw_only=True)
class AdapterFile:
    """Writes adapter_config.json and adapter_model.safetensors; the same weights at the same step give the same bytes."""

    sites: tuple[Site, ...] = field(repr=False)
    name_map: NameMap = field(repr=False)
    """For Hugging Face's names."""
    base_name: str
    """What the base is called, without a path."""
    base_id: str | None
    """Its name on the Hub, where it lies in the Hub's cache: peft asks the Hub for whatever stands in the config."""
    base_hash: str
    tokenizer: TokenizerSpec
    """The run's, which may be another than the base's; it lies beside the adapter at the run's end."""
    task: str | None
    """PEFT's word for what the model does; None where it has none."""

    def __call__(self, path: Path, weights: Weights, *, step: int) -> None:
        """Write both files where `path` is, and at the run's end the tokenizer before them; other files there stay.

        Raises:
            OutputError: when one cannot be written; old weights are then as they were.
        """
        folder = path.parent
        if folder.name == ADAPTER_FOLDER:
            self._write_tokenizer(folder)
        self._write(folder, weights, step)

    def _write_tokenizer(self, folder: Path) -> None:
        try:
            folder.mkdir(exist_ok=True)
            write_tokenizer(folder, self.tokenizer)
        except OSError as error:
            problem, hint = f"cannot be written ({error.strerror})", "Check the path and its permissions."
            raise OutputError(problem, where=folder, hint=hint) from error

    def restore(self, model: nn.Module, folder: Path) -> None:
        """Give the model's adapters the values that lie in a checkpoint.

        Raises:
            FormatError: for files that are not this run's.
        """
        set_adapter(model, self.sites, open_adapter(folder))

    def _write(self, folder: Path, weights: Weights, step: int) -> None:
        tensors = {name: to_view(tensor) for name, tensor in adapter_tensors(weights.whole, self.sites).items()}
        note = {BASE_NOTE: self.base_hash, NAME_NOTE: self.base_name, STEP_NOTE: str(step)}
        write_adapter(folder, self._config(weights.model), tensors, note=note)

    def _config(self, model: nn.Module) -> Mapping[str, Any]:
        return {
            **adapter_config(model),
            "base_model_name_or_path": self.base_id,
            "target_modules": short_names(self.sites, self.name_map),
            "task_type": self.task,
            "fan_in_fan_out": all(site.is_transposed for site in self.sites),
        }
