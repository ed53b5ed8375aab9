"""What `make dist` builds: wheels and sources that hold everything, say the truth, and need nothing of this repository."""

import email
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = [ROOT / "core", *sorted(path.parent for path in ROOT.glob("plugins/*/pyproject.toml"))]
FAMILIES = [folder.name for folder in FOLDERS[1:]]
each = pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
LINK = re.compile(r"\]\((?!https?:|#)")


class Built:
    """A distribution's wheel and source archive, open."""

    def __init__(self, folder, target):
        command = [sys.executable, "-m", "hatchling", "build", "-d", str(target)]
        subprocess.run(command, check=True, capture_output=True, cwd=folder)
        (wheel,), (source,) = target.glob("*.whl"), target.glob("*.tar.gz")
        self.project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
        with zipfile.ZipFile(wheel) as archive:
            self.files = {name: archive.read(name) for name in archive.namelist()}
        with tarfile.open(source) as archive:
            self.sources = {name.partition("/")[2] for name in archive.getnames()}
        self.info = wheel.name.removesuffix("-py3-none-any.whl") + ".dist-info"
        self.metadata = email.message_from_bytes(self.files[f"{self.info}/METADATA"])


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return {folder: Built(folder, tmp_path_factory.mktemp(folder.name)) for folder in FOLDERS}


def known_to_git(folder, *below):
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *below]
    listed = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout.split("\0")
    return {name for name in listed if name and (folder / name).exists()}


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a clone")
@each
def test_every_file_is_in_the_wheel_and_in_the_source(built, folder):
    package = {name.removeprefix("src/") for name in known_to_git(folder, "src")}
    assert {name for name in built[folder].files if ".dist-info/" not in name} == package
    assert known_to_git(folder) <= built[folder].sources


@each
def test_licence_readme_and_typed_marker_are_there(built, folder):
    found = built[folder]
    assert found.files[f"{found.info}/licenses/LICENSE"] == (folder / "LICENSE").read_bytes()
    assert (found.metadata["License-Expression"], found.metadata["License-File"]) == ("Apache-2.0", "LICENSE")
    assert found.metadata["Description-Content-Type"] == "text/markdown"
    assert found.metadata.get_payload(decode=True).decode() == (folder / "README.md").read_text()
    assert "Typing :: Typed" in found.metadata.get_all("Classifier")
    (package,) = {name.partition("/")[0] for name in found.files if ".dist-info/" not in name}
    assert f"{package}/py.typed" in found.files


@each
def test_a_readme_has_no_link_that_is_dead_on_another_page(folder):
    assert LINK.findall((folder / "README.md").read_text()) == []


@each
def test_what_python_it_wants_is_what_its_classifiers_say(built, folder):
    classifiers = built[folder].metadata.get_all("Classifier")
    assert built[folder].metadata["Requires-Python"] == ">=3.11"
    assert "Programming Language :: Python :: 3.11" in classifiers
    assert [item for item in classifiers if item.startswith("License ::")] == []  # the expression says it


def test_the_extra_brings_every_family_and_no_version_of_one(built):
    wanted = [line for line in built[ROOT / "core"].metadata.get_all("Requires-Dist") if "extra == 'families'" in line]
    assert sorted(line.partition(";")[0].strip() for line in wanted) == [f"apr-train-{name}" for name in FAMILIES]


def test_a_family_wants_the_core_that_is_built_beside_it(built):
    major, minor, _ = built[ROOT / "core"].metadata["Version"].split(".")
    for folder in FOLDERS[1:]:
        assert built[folder].project["dependencies"] == [f"apr-train>={major}.{minor},<{major}.{int(minor) + 1}"]


def test_torch_has_the_tested_floor_and_no_upper_end(built):
    (wanted,) = [line for line in built[ROOT / "core"].metadata.get_all("Requires-Dist") if line.startswith("torch")]
    (pinned,) = re.findall(r"^torch==(\d+\.\d+)", (ROOT / "constraints.txt").read_text(), re.M)
    assert wanted == f"torch>={pinned}"


@each
def test_a_version_stands_in_one_place(built, folder):
    assert built[folder].metadata["Version"] == built[folder].project["version"]
    assert not [name for name, text in built[folder].files.items() if name.endswith(".py") and b"__version__ =" in text]
