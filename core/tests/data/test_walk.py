"""The way through the folders of a corpus."""

import os
import subprocess
from pathlib import Path

from apr_train.data.sources import find_files


def test_folders_nested_deeper_than_calls_are_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("top").mkdir()
    os.chdir("top")
    for _ in range(1500):
        Path("d").mkdir()
        os.chdir("d")
    Path("a.txt").write_text("deep")
    os.chdir(tmp_path)
    [found] = find_files(["top"], notice=print)
    assert len(found.parts) == 1502
    subprocess.run(["rm", "-r", str(tmp_path / "top")], check=True)  # shutil's own removal calls itself for each level
