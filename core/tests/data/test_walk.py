"""The way through the folders of a corpus."""

import inspect
import sys
from pathlib import Path

from apr_train.data.sources import find_files

DEEP = 300


def test_folders_nested_deeper_than_calls_are_read(tmp_path):
    folder = tmp_path.joinpath(*["d"] * DEEP)
    folder.mkdir(parents=True)
    (folder / "a.txt").write_text("deep")
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack()) + DEEP // 2)
    try:
        found = find_files([str(tmp_path)], notice=print)
    finally:
        sys.setrecursionlimit(before)
    assert found == [Path(folder, "a.txt")]
