"""`apr-train publish`: the folder that one uploads. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from apr_train.cli.options import dtype_option, output_option, setting
from apr_train.cli.output import tell
from apr_train.run.progress import progress_bar

if TYPE_CHECKING:
    from apr_train.artifact.convert import Dtype

EPILOG = "Example: apr-train publish runs/NAME/model.apr -o NAME --base-model ORGANISATION/BASE --language code"


@click.command("publish", epilog=EPILOG)
@click.argument("source", metavar="X.apr", type=click.Path(path_type=Path))
@output_option("The folder to write.", folder=True)
@click.option("--base-model", metavar="ID", help="The Hub's name of the model that this one was made from.")
@click.option("--dataset", "datasets", multiple=True, metavar="ID", help="The Hub's name of a data set it was trained on.")
@click.option("--language", "languages", multiple=True, metavar="CODE", help="A language of its text: en, code, …")
@setting("arch")
@dtype_option("f32", "f16", "bf16", text="Type in the safetensors. Default: floats as stored.")
def command(
    source: Path,
    output: Path,
    base_model: str | None,
    datasets: tuple[str, ...],
    languages: tuple[str, ...],
    arch: str | None,
    dtype: Dtype | None,
) -> None:
    """Write X.apr, its Hugging Face form, tokenizer, card and checksums into one folder.

    The card is README.md, with front matter as the Hub reads it. X.apr must say its licence, its training data and that
    data's licence: `apr-train stamp` sets them. A result that still lies in its run's folder brings the run's numbers
    along. Nothing is uploaded.
    """
    from apr_train.artifact.hub_card import HubNames
    from apr_train.artifact.publish import publish
    from apr_train.family.registry import Registry

    hub_names = HubNames(base_model=base_model, datasets=datasets, languages=languages)
    with progress_bar(f"writing {output.name}") as progress:
        names = publish(source, output, Registry.discover(), names=hub_names, arch=arch, dtype=dtype, progress=progress)
    tell(f"{output}: {len(names)} files")
    for name in names:
        tell(f"  {name}")
