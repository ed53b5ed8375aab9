"""`apr-train report`: one page, or one picture, of one or several runs. Imports no torch."""

from __future__ import annotations

from pathlib import Path

import click

from apr_train.cli.options import UserPath
from apr_train.cli.output import tell

EPILOG = "Examples: apr-train report runs/a runs/b -o report.html   ·   apr-train report runs/a --png loss.png"


@click.command("report", epilog=EPILOG)
@click.argument("runs", nargs=-1, required=True, metavar="RUN...", type=UserPath(path_type=Path))
@click.option("-o", "--output", type=UserPath(path_type=Path, dir_okay=False), help="The page to write, such as report.html.")
@click.option("--png", type=UserPath(path_type=Path, dir_okay=False), help="The curves alone, as a picture (takes matplotlib).")
def command(runs: tuple[Path, ...], output: Path | None, png: Path | None) -> None:
    """Show the runs RUN... (folders such as runs/NAME) together on one page that needs no network.

    Curves of loss, validation, learning rate, gradient norm and throughput with values under the pointer; final numbers;
    the settings that differ; what the preflight found; what the models wrote. A run may still be under way.
    """
    from apr_train.artifact.targets import check_file
    from apr_train.run.folder import kept_files
    from apr_train.run.record import read_records

    if output is None and png is None:
        raise click.UsageError("Nothing to write: give -o report.html, or --png curves.png.")
    if png is not None:
        if output is not None and output.resolve() == png.resolve():
            raise click.UsageError("-o and --png name the same file.")
        from apr_train.artifact.report.png import require_matplotlib

        require_matplotlib()
    records = read_records(runs)
    kept = [path for record in records for path in kept_files(record.folder)]
    for target, suffix in ((output, ".html"), (png, ".png")):
        if target is not None:
            check_file(target, kept, suffix=suffix, only=True)
    if output is not None:
        from apr_train.artifact.report.page import report_page
        from apr_train.atomic import write_file

        write_file(output, report_page(records).encode("utf-8", errors="replace"))  # JSON may hold half a character
        tell(f"{output}: {len(records)} run{'s' * (len(records) > 1)}")
    if png is not None:
        from apr_train.artifact.report.png import write_png

        write_png(records, png)
        tell(f"{png}: {len(records)} run{'s' * (len(records) > 1)}")
