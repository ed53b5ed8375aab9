"""model.apr: the weights with the tokenizer and where they come from, in a file that any command opens."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import frozen

from apr_train.artifact.metadata import apr_metadata
from apr_train.checkpoint.apr.keys import FORMAT
from apr_train.checkpoint.apr.metadata import encode_metadata
from apr_train.checkpoint.apr.writer import AprWriter, TensorSpec
from apr_train.checkpoint.header import Header, TokenizerSpec
from apr_train.checkpoint.reference import KEY as REFERENCE
from apr_train.family.card import FamilyInfo
from apr_train.family.config import ModelConfig
from apr_train.family.name_map import NameMap
from apr_train.family.operations import joined
from apr_train.model.tensors import DTYPE_NAMES, to_view
from apr_train.run.folder import MODEL
from apr_train.run.provenance import RUN_KEY, stamp_in
from apr_train.training.checkpoint import Weights


@frozen(kw_only=True)
class ModelFile:
    """Writes model.apr; the same weights at the same step give the same bytes."""

    info: FamilyInfo
    config: ModelConfig
    name_map: NameMap
    """For Hugging Face names, split-half rows."""
    header: Header | None
    """Of the checkpoint that the run started from: its provenance is inherited, and what is kept of its files."""
    tokenizer: TokenizerSpec
    origin: Mapping[str, Any]
    """What goes under `apr_train.run`, the step excepted."""

    def __call__(self, path: Path, weights: Weights, *, step: int) -> None:
        """Write the file, one tensor at a time; what was stamped into the one that it replaces is kept.

        Raises:
            OutputError: when it cannot be written; an old file is then as it was.
        """
        parameters = weights.parameters
        specs = [
            TensorSpec(name, DTYPE_NAMES[parameters[edges[0].parameter].dtype], shape)
            for name, shape in self.name_map.tensors.items()
            if (edges := self.name_map.edges(name))
        ]
        with AprWriter(path, self._metadata(specs, step, self.provenance(path)), specs) as writer:
            for spec in specs:
                edges = self.name_map.edges(spec.name)
                wholes = {edge.parameter: weights.whole(edge.parameter) for edge in edges}
                pieces = ((edge.checkpoint_part, edge.to_checkpoint(wholes[edge.parameter])) for edge in edges)
                writer.write(spec.name, to_view(joined(spec.shape, pieces)).data)

    def require_writable(self) -> None:
        """Find out before anything is spent whether there can be a file: its metadata has limits that a tokenizer may pass.

        Raises:
            FormatError: naming what `.apr` cannot hold.
        """
        encode_metadata(self._metadata([], 0, self._inherited), MODEL)

    @property
    def _inherited(self) -> Mapping[str, Any]:
        return self.header.provenance if self.header is not None else {}

    def provenance(self, path: Path) -> dict[str, Any]:
        """Licence, data, author and so on of the file that is written to `path`."""
        return {**self._inherited, **stamp_in(path, self.origin)}

    def _metadata(self, tensors: Sequence[TensorSpec], step: int, provenance: Mapping[str, Any]) -> dict[str, Any]:
        inherited = apr_metadata(self.config, self.info, header=self.header, tokenizer=self.tokenizer, provenance=provenance)
        inherited.pop(FORMAT, None)
        inherited.pop(REFERENCE, None)  # it is the loss of the weights that the run started from
        return {
            **inherited,
            "total_size": sum(tensor.nbytes for tensor in tensors),
            "param_count": sum(math.prod(tensor.shape) for tensor in tensors),
            RUN_KEY: {**self.origin, "step": step},
        }
