"""Real distributions in temporary folders: the plugins of tests/plugins, installed with pip, and the example families."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

SOURCES = Path(__file__).parent / "plugins"
FAMILIES = Path(__file__).parents[1] / "docs" / "families"
PYPROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "{distribution}"
version = "{version}"

[project.entry-points."apr_train.families"]
{name} = "{module}"

[tool.hatch.build.targets.wheel]
include = ["{module}.py"]
"""


class PluginSite:
    """A folder that pip installs plugins into, and processes that see it."""

    def __init__(self, root):
        self.root = root
        self.target = root / "site"

    def install(self, *plugins):
        """Build and install `(source, distribution)` pairs."""
        projects = [self._write(*plugin) for plugin in plugins]
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
        subprocess.run([*command, "--target", self.target, *projects], check=True, capture_output=True, text=True)
        return self

    def _write(self, source, distribution):
        folder = self.root / distribution
        folder.mkdir(parents=True)
        module = distribution.replace("-", "_")
        (folder / f"{module}.py").write_text((SOURCES / f"{source}.py").read_text())
        text = PYPROJECT.format(distribution=distribution, version="0.3.1", name=source, module=module)
        (folder / "pyproject.toml").write_text(text)
        return folder

    def run(self, *arguments, **environment):
        """Run the interpreter on `arguments` with the plugins installed."""
        variables = {**os.environ, "PYTHONPATH": str(self.target), **environment}
        command = [sys.executable, *arguments]
        return subprocess.run(command, check=False, capture_output=True, text=True, env=variables, timeout=120)

    def cli(self, *arguments, **environment):
        """Run `apr-train` with the plugins installed."""
        return self.run("-c", "from apr_train.cli import main; main()", *arguments, **environment)

    def plugins(self, **environment):
        """The answer of `apr-train plugins --json`."""
        done = self.cli("plugins", "--json", **environment)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


@pytest.fixture(scope="session")
def make_site(tmp_path_factory):
    return lambda *plugins: PluginSite(tmp_path_factory.mktemp("plugins")).install(*plugins)


class Examples:
    """The example families of docs/families side by side, and processes that see them."""

    def __init__(self, site):
        self.site = site

    def run(self, folder, *command, **environment):
        """Run the interpreter in a folder."""
        path = os.pathsep.join(filter(None, [str(self.site), os.environ.get("PYTHONPATH")]))
        variables = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "APR_TRAIN_CACHE": str(folder / "cache")}
        command = [sys.executable, *map(str, command)]
        variables |= environment
        return subprocess.run(command, check=False, capture_output=True, text=True, cwd=folder, env=variables, timeout=600)


@pytest.fixture(scope="session")
def examples(tmp_path_factory):
    """A folder with every example's wheel unpacked in it, as pip leaves them."""
    folder = tmp_path_factory.mktemp("examples")
    wheels = tmp_path_factory.mktemp("wheels")
    for project in sorted(FAMILIES.glob("*/pyproject.toml")):
        command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(wheels)]
        subprocess.run(command, check=True, capture_output=True, cwd=project.parent)
    for wheel in wheels.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
    return Examples(folder)
