"""Real distributions of the plugins in tests/plugins, installed with pip into temporary folders."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SOURCES = Path(__file__).parent / "plugins"
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
