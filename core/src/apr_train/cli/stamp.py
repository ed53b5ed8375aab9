"""`apr-train stamp`: licence, data and name into an `.apr` file. Imports no torch."""

from __future__ import annotations

from pathlib import Path

import click

from apr_train.cli.output import tell
from apr_train.run.progress import progress_bar

EPILOG = 'Example: apr-train stamp model.apr --license MIT --data-source "the CPython 3.13 source" --data-license PSF-2.0'


@click.command("stamp", epilog=EPILOG)
@click.argument("path", metavar="X.apr", type=click.Path(path_type=Path))
@click.option("--license", "license_", metavar="SPDX", help="Licence of the weights: an SPDX identifier or expression.")
@click.option("--data-source", metavar="TEXT", help="What the model was trained on: a name, a URL, a Hub data set.")
@click.option("--data-license", metavar="SPDX", help="Licence of that data.")
@click.option("--name", metavar="TEXT", help="Name of the model.")
@click.option("--version", metavar="TEXT", help="Version of the model.")
@click.option("--author", metavar="TEXT", help="Who made it.")
@click.option("--description", metavar="TEXT", help="What it is, in a sentence.")
def command(path: Path, license_: str | None, **texts: str | None) -> None:
    """Set the provenance of X.apr; what is not named stays as it is, and so does every tensor, bit for bit.

    The file is written anew beside itself, with new checksums, and then replaced as a whole: an interrupted stamp leaves
    it as it was.
    """
    from apr_train.artifact.provenance import stamp

    values = {key: value for key, value in {"license": license_, **texts}.items() if value is not None}
    if not values:
        raise click.UsageError("Nothing to set: give at least one option, such as --license.")
    with progress_bar(f"copying {path.name}") as progress:
        changes = stamp(path, values, progress=progress)
    for key, (before, after) in changes.items():
        tell(f"{key}: {after}" + (f" (was {before})" if before is not None else ""))
    written = "written with the new metadata, tensors bit for bit the same"
    tell(f"{path}: {written if changes else 'already says so, nothing was written'}")
