"""Run a folder of fault-reproducing shell scripts against this checkout's command and judge each by what it expects.

    python tools/cases.py FOLDER               all of them
    python tools/cases.py FOLDER 03 17         some of them
    python tools/cases.py FOLDER --show        with what each printed

A script gets APR and PY in its environment and prints what happens; cases.toml says what has to be in that and what must
not. Scripts that import modules by the names that they had before the rooms are ported on the fly (PORTED).
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path
from typing import Any

BIN = Path(sys.executable).parent
LONGEST = 1800
"""Seconds: one of them trains on a hundred megabytes, twice."""

PORTED = {
    "from apr_train.formats.source import": "from apr_train.checkpoint.open import",
    "from apr_train.data.settings import CorpusSettings": "from apr_train.run.settings import DataSettings as CorpusSettings",
    "from apr_train.data.survey import survey_corpus": "from apr_train.data.scan import scan_corpus as survey_corpus",
    "from apr_train.config import": "from apr_train.family import",
    "from apr_train.decoder_names import": "from apr_train.family import",
    "from apr_train.hookspecs import": "from apr_train.family import",
    "from apr_train.names import": "from apr_train.family import",
}


def main() -> int:
    """Run what was asked for; the exit status is the number of scripts that are not as they should be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("numbers", nargs="*")
    parser.add_argument("--show", action="store_true")
    asked = parser.parse_args()
    known = tomllib.loads((Path(__file__).parent / "cases.toml").read_text())
    scripts = [path for path in sorted(asked.folder.glob("*.sh")) if not asked.numbers or path.stem in asked.numbers]
    failed = 0
    for path in scripts:
        start, said = time.monotonic(), run(path)
        faults = judge(known.get(path.stem), said)
        failed += bool(faults)
        verdict, seconds = "NOT as expected" if faults else "as expected", time.monotonic() - start
        lines = [f"{path.stem}  {verdict:15} {seconds:5.0f} s  {known.get(path.stem, {}).get('title', '')}", *faults]
        lines += said.splitlines() if asked.show else []
        sys.stdout.write("\n      ".join(line[:300] for line in lines) + "\n")
        sys.stdout.flush()
    sys.stdout.write(f"{len(scripts)} cases, {len(scripts) - failed} as expected\n")
    return failed


def run(path: Path) -> str:
    """What a script prints, ported to the modules' present names."""
    text = path.read_text()
    for old, new in PORTED.items():
        text = text.replace(old, new)
    with tempfile.NamedTemporaryFile("w", suffix=".sh") as ported, tempfile.TemporaryDirectory() as home:
        environment = {**os.environ, "APR": str(BIN / "apr-train"), "PY": str(BIN / "python"), "HOME": home}
        ported.write(text)
        ported.flush()
        done = subprocess.run(
            ["bash", ported.name],
            env=environment,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=LONGEST,
            check=False,
        )
    return done.stdout + done.stderr


def judge(expected: dict[str, Any] | None, said: str) -> list[str]:
    """What is not as it should be, one line each."""
    if expected is None:
        return ["cases.toml says nothing about it"]
    faults = [f"lacks {pattern}" for pattern in expected.get("has", ()) if not found(pattern, said)]
    faults += [f"has {pattern}" for pattern in expected.get("lacks", ()) if found(pattern, said)]
    if "limit" in expected:
        pattern, most = expected["limit"]
        faults += [f"{value} is more than {most}" for value in found(pattern, said) if float(value) > most]
    return faults


def found(pattern: str, said: str) -> list[str]:
    """Every match of a pattern."""
    return re.findall(pattern, said, re.MULTILINE | re.DOTALL)


if __name__ == "__main__":
    sys.exit(main())
