"""A folder with text, in which runs of several processes are made."""

import pytest

TEXT = "".join(f"def scale_{n}(values):\n    return [value * {n} + {n % 7} for value in values]\n\n\n" for n in range(400))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    (folder / "text").mkdir()
    for number in range(20):
        (folder / "text" / f"{number}.py").write_text(f"# part {number}\n{TEXT[number * 900 : number * 900 + 2400]}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("APR_TRAIN_CACHE", str(folder / "cache"))
        yield folder
