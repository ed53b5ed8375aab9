"""A family's files in both directions: those of another implementation read here, and ours read there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from apr_train.artifact.convert import import_to_apr, plan_conversion
from apr_train.artifact.export import export_to_folder
from apr_train.checkpoint.open import open_checkpoint
from apr_train.family.plugin import Family
from apr_train.family.registry import Registry
from apr_train.testing.compare import FLOAT64, check_agreement, fail_on
from apr_train.testing.float64 import compute_in_float64, everything_in_float64, is_lifted
from apr_train.testing.models import model_from_file, our_logits


def check_files(family: Family, reference: nn.Module, tokens: Tensor, folder: Path) -> float:
    """A transformers model saved, loaded, imported, exported and loaded there again must compute the same all the way.

    Here everything is computed in float64, from the files' own config and names. What comes back is compared bit for bit.

    Args:
        family: whose files they are.
        reference: a transformers model: `save_pretrained`, `from_pretrained`, and `reference(input_ids=…).logits`.
        tokens: `[batch, length]` int64.
        folder: an empty one; files of the model's size are written into it, three times.

    Returns:
        The largest relative error of the logits here.

    Raises:
        ConformanceError: naming the step at which something changed.
        AprTrainError: what a user would be told about the files.
    """
    typed: Any = reference
    typed.save_pretrained(folder / "theirs")
    wide: Any = reference if is_lifted(reference) else compute_in_float64(reference)
    theirs = {"logits": wide(input_ids=tokens).logits}
    apr, ours = folder / "imported.apr", folder / "ours"
    with open_checkpoint(folder / "theirs") as checkpoint:
        faults = (
            [] if family.info.claims(checkpoint.header) else [f"the family does not claim a file of {type(typed).__name__}"]
        )
        fail_on(faults, where=f"{family.name} FAMILY.hf_classes")
        import_to_apr(plan_conversion(checkpoint, Registry.discover(), arch=family.name), apr)
    with open_checkpoint(apr) as checkpoint:
        export_to_folder(plan_conversion(checkpoint, Registry.discover(), arch=family.name), ours)
    errors = []
    for path in (folder / "theirs", apr, ours):
        model, _ = model_from_file(family, path, dtype=torch.float64)
        with everything_in_float64():
            logits = our_logits(family, model, tokens)
        where = f"{family.name} from {path.name}"
        errors.append(check_agreement({"logits": logits}, theirs, tolerance=FLOAT64, where=where))
    _check_return(family, typed, tokens, ours)
    return max(errors)


def _check_return(family: Family, typed: Any, tokens: Tensor, ours: Path) -> None:
    """The export, loaded by the class that the reference is of."""
    dtype = next(typed.parameters()).dtype
    again, notes = type(typed).from_pretrained(ours, output_loading_info=True, attn_implementation="eager", dtype=dtype)
    fail_on(
        (f"{what}: {', '.join(sorted(names))}" for what, names in notes.items() if names),
        where=f"{type(typed).__name__} loads the export",
    )
    returned, state = again.state_dict(), typed.state_dict()
    fail_on(
        (f"{name} comes back changed" for name, tensor in state.items() if not torch.equal(tensor, returned[name])),
        where=f"{family.name} export",
    )
    logits = compute_in_float64(again.eval())(input_ids=tokens).logits
    expected = compute_in_float64(typed)(input_ids=tokens).logits
    check_agreement({"logits": logits}, {"logits": expected}, tolerance=FLOAT64, where="the export, there")
