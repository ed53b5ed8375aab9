"""`apr-train publish`: the folder that one uploads. Imports no torch."""

from __future__ import annotations

from pathlib import Path

import click

DTYPES = {"f32": "F32", "f16": "F16", "bf16": "BF16"}
EPILOG = "Example: apr-train publish runs/NAME/model.apr -o NAME --base-model ORGANISATION/BASE --language code"


@click.command("publish", epilog=EPILOG)
@click.argument("source", metavar="X.apr", type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path, file_okay=False), help="The folder to write.")
@click.option("--base-model", metavar="ID", help="The Hub's name of the model that this one was made from.")
@click.option("--dataset", "datasets", multiple=True, metavar="ID", help="The Hub's name of a data set it was trained on.")
@click.option("--language", "languages", multiple=True, metavar="CODE", help="A language of its text: en, code, …")
@click.option("--arch", help="The family, when none or several claim the file.")
@click.option("--dtype", type=click.Choice(list(DTYPES)), help="Type in the safetensors. Default: floats as stored.")
def command(
    source: Path,
    output: Path,
    base_model: str | None,
    datasets: tuple[str, ...],
    languages: tuple[str, ...],
    arch: str | None,
    dtype: str | None,
) -> None:
    """Write X.apr, its Hugging Face form, tokenizer, card and checksums into one folder.

    The card is README.md, with front matter as the Hub reads it. X.apr must say its licence, its training data and that
    data's licence: `apr-train stamp` sets them. A result that still lies in its run's folder brings the run's numbers
    along. Nothing is uploaded.
    """
    from apr_train.artifact.hub_card import HubNames
    from apr_train.artifact.publish import publish
    from apr_train.cli.progress import progress_bar
    from apr_train.family.registry import Registry

    hub_names = HubNames(base_model=base_model, datasets=datasets, languages=languages)
    with progress_bar(f"writing {output.name}") as progress:
        names = publish(
            source,
            output,
            Registry.discover(),
            names=hub_names,
            arch=arch,
            dtype=DTYPES.get(dtype or ""),  # type: ignore[arg-type] # the choices are Dtype's
            progress=progress,
        )
    click.echo(f"{output}: {len(names)} files")
    for name in names:
        click.echo(f"  {name}")
