"""docs/python.md: its code runs from the first block to the last, and its table has every function."""

import re
import runpy
import shutil
from pathlib import Path

import apr_train
import pytest

PAGE = Path(__file__).parents[2] / "docs" / "python.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)


def test_the_page_runs_from_a_checkpoint_to_a_curve(place, taught, capsys):
    pytest.importorskip("matplotlib")
    shutil.copy(taught, place.folder / "start.apr")
    shutil.copytree(place.corpus, place.folder / "src")
    (place.folder / "page.py").write_text("".join(BLOCKS))
    names = runpy.run_path("page.py")
    assert (place.folder / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert [line.step for line in names["run"].metrics] == list(range(31))
    assert names["measured"].loss == pytest.approx(names["run"].metrics[-1].val_loss, rel=1e-5)
    assert len(names["logits"]) >= len(names["ids"])
    said = capsys.readouterr()
    assert "stepz did you mean steps?\nbatchsize did you mean batch_size?\n" in said.out
    assert "\n[]\n" in said.out  # the mixture has no fault
    assert said.err == ""


def test_every_function_is_on_the_page():
    functions = [name for name in apr_train.__all__ if name[0].islower()]
    assert [name for name in functions if f"`{name}(" not in PAGE.read_text()] == []
    assert [name for name in apr_train.__all__ if f"`{name}`" not in PAGE.read_text() and name not in functions] == [
        "AprTrainError"
    ]
