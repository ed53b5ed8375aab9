"""Measure families of this repository anew and write their certificates; the installed core and plugins are what is measured.

python tools/certify.py [NAME…]            # all without names; the examples of docs/families are built and put on the path
python tools/certify.py --page             # docs/families.md from the certificates, on stdout
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from apr_train.family.certificate import NAME, Certificate, read_certificate

ROOT = Path(__file__).parents[1]
RUN = "from apr_train.cli import main; main()"
HEAD = """# Families

Every family of this repository, by what its certificate says: measured by its authors with `apr-train verify`, shipped beside
its code, and measured again in CI. A certificate is a self-report; `apr-train plugins` tells whether the installed code is the
one that was measured, and `apr-train verify FAMILY --check` measures it on your machine. This page is made from them by
`make docs`; how to write a family is in the [tutorial](tutorial.md).

The errors are relative (‖ours − theirs‖ / ‖theirs‖, the worst tensor), of the smallest preset, in float64: logits, the gradient
of every parameter, and the loss of each of ten optimizer steps. In bfloat16 both sides are held against float64: ours, and in
brackets the library's own, the worst of logits and gradients. Random weights make it large where a model has many norms; where
tokens are sent to experts, rounding decides which, and nothing is compared.

| family | version | compared with | logits | gradients | ten steps | bfloat16 | checks kept | code |
|---|---|---|---|---|---|---|---|---|
"""


def certificates() -> dict[str, Path]:
    """Family → where its certificate lies in this repository."""
    plugins = {path.parents[2].name: path.with_name(NAME) for path in sorted(ROOT.glob("plugins/*/src/*/__init__.py"))}
    examples = {path.parent.name: path for path in sorted(ROOT.glob("docs/families/*/apr_train_*.py"))}
    return plugins | {name: path.with_name(f"{path.stem}.{NAME}") for name, path in examples.items()}


def build_examples(site: Path, names: list[str]) -> None:
    """Build the wheels of example families and unpack them into a folder."""
    with tempfile.TemporaryDirectory() as wheels:
        for name in names:
            folder = ROOT / "docs" / "families" / name
            if folder.is_dir():
                command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", wheels]
                subprocess.run(command, check=True, capture_output=True, cwd=folder)
        for wheel in Path(wheels).glob("*.whl"):
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(site)


def certify(names: list[str]) -> None:
    """Write the certificates of these families."""
    places = certificates()
    with tempfile.TemporaryDirectory() as site:
        build_examples(Path(site), names)
        for name in names:
            command = [sys.executable, "-c", RUN, "verify", name, "--against", "transformers", "-o", str(places[name])]
            environment = {**os.environ, "PYTHONPATH": os.pathsep.join([site, os.environ.get("PYTHONPATH", "")])}
            subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            sys.stdout.write(f"{places[name].relative_to(ROOT)}\n")


def page() -> str:
    """The index of families."""
    found = {name: read_certificate(path) for name, path in certificates().items() if path.is_file()}
    return HEAD + "".join(f"| {' | '.join(_row(name, found[name]))} |\n" for name in found)


def _row(name: str, certificate: Certificate) -> Iterator[str]:
    folder = f"families/{name}/" if (ROOT / "docs" / "families" / name).is_dir() else f"../plugins/{name}/"
    exact = [values for key, values in certificate.agreement.items() if key.startswith("float64")]
    yield f"[{name}]({folder})"
    yield certificate.version
    yield certificate.label
    for part in ("logits", "gradients"):
        yield f"{max(values[part] for values in exact):.0e}" if exact else ""
    yield f"{certificate.training['float64']['losses']:.0e}" if certificate.training else ""
    half = [values for key, values in certificate.agreement.items() if key.startswith("bfloat16")]
    ours = max((max(values["logits"], values["gradients"]) for values in half), default=0.0)
    yield f"{ours:.2g} ({max(values['rounding'] for values in half):.2g})" if half else "—"
    yield str(sum("not_checked" not in check for check in certificate.checks))
    yield f"`{certificate.code[:12]}`"


if __name__ == "__main__":
    if sys.argv[1:] == ["--page"]:
        sys.stdout.write(page())
    else:
        certify(sys.argv[1:] or list(certificates()))
