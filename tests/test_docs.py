"""The documentation is true: links lead somewhere, commands exist, what can run runs, generated pages are fresh."""

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest
from apr_train.cli import cli
from apr_train.run.settings import Settings, run_stem
from apr_train.run.settings_file import with_values

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "core").glob("*.md"), *ROOT.glob("plugins/*/*.md")])
FENCE = re.compile(r"^```(?P<info>[^\n]*)\n(?P<text>.*?)^```", re.M | re.S)
LINK = re.compile(r"\]\((?!https?:|mailto:)(?P<target>[^)\s]+)\)")
HEADING = re.compile(r"^#+ +(.+)$", re.M)
IN_TEXT = re.compile(r"^    (apr-train .*?)(?: {3,}.*)?$|`(apr-train -[^`]*)`", re.M)
UNLISTED = {"__init__.py", "py.typed"}
"""What the tree does not name: it is in every package."""
pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def fences(page, *infos):
    return [match["text"] for match in FENCE.finditer(page.read_text()) if match["info"] in infos]


def commands(page):
    """Every line of a shell that the page shows, as words: continued lines joined, pipes and comments cut off."""
    text = FENCE.sub("", page.read_text())
    shown = [*fences(page, "sh", "sh run", "console"), *(one or two for one, two in IN_TEXT.findall(text))]
    for line in "\n".join(shown).replace("\\\n", " ").splitlines():
        words = shlex.split(line.strip().removeprefix("$ "), comments=True)
        cut = next((place for place, word in enumerate(words) if word in {"|", ">", "<", "&&"}), len(words))
        if words:
            yield words[:cut]


def anchors(page):
    """GitHub's names of a page's headings."""
    headings = HEADING.findall(FENCE.sub("", page.read_text()))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def check_command(words):
    """Let click parse the line as it would, without running anything."""
    with click.Context(cli, info_name="apr-train", obj={}, **cli.context_settings) as context:
        names = cli.list_commands(context)
        if words and words[0].startswith("-"):
            if words in (["--help"], ["--version"]):
                return
            words = ["train", *words]
        assert words[0] in names, words
        command = cli.get_command(context, words[0])
        inner = click.Context(command, info_name=words[0], parent=context)
        arguments = [word for word in words[1:] if word not in {"--help", "--debug"}]
        command.make_parser(inner).parse_args(arguments)  # raises for an option that does not exist


@pages
def test_links_lead_somewhere(page):
    broken = []
    for match in LINK.finditer(FENCE.sub("", page.read_text())):
        path, _, anchor = match["target"].partition("#")
        target = (page.parent / path) if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(match["target"])
    assert broken == []


@pages
def test_every_apr_train_command_that_is_shown_exists_with_its_options(page):
    for words in commands(page):
        if words[0] == "apr-train" and len(words) > 1:
            check_command(words[1:])


def test_the_check_of_commands_can_fail():
    with pytest.raises(click.NoSuchOption):
        check_command(["--arch", "qwen2", "--inti", "x.apr"])


@pages
def test_every_make_target_that_is_shown_exists(page):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    assert {word for words in commands(page) if words[0] == "make" for word in words[1:] if "=" not in word} <= targets


def test_every_page_is_reached_from_the_readme():
    readme = (ROOT / "README.md").read_text()
    assert [page.name for page in (ROOT / "docs").glob("*.md") if f"(docs/{page.name})" not in readme] == []


def test_the_families_page_is_fresh():
    spec = importlib.util.spec_from_file_location("certify", ROOT / "tools" / "certify.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (ROOT / "docs" / "families.md").read_text() == module.page(), "make docs writes it anew"


def test_the_command_line_page_is_fresh():
    spec = importlib.util.spec_from_file_location("cli_reference", ROOT / "tools" / "cli_reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (ROOT / "docs" / "cli.md").read_text() == module.reference(), "stale: run make docs"


def test_the_readme_shows_what_the_demo_prints():
    """Real output: paste demo/summary.txt between the marks after `make demo`."""
    (block,) = re.findall(r"<!-- demo-output -->(.*?)<!-- /demo-output -->", (ROOT / "README.md").read_text(), re.S)
    labels = ("training speed", "prompt\n", "completion before\n", "completion after\n", "written\n")
    assert [label for label in labels if label not in block] == []
    told = ("from scratch +", "step 0, from --init +", r"step \d+, trained +", "the demo took ")
    scratch, start, end, seconds = (float(re.search(label + r"(\d+(\.\d+)?)", block)[1]) for label in told)
    assert scratch >= 9.3
    assert start <= 2.6
    assert end < start
    assert seconds < 240


def test_the_readme_names_runs_as_its_own_trainings_do(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    named, made = set(), set()
    for words in commands(ROOT / "README.md"):
        named |= {word.split("/")[1] for word in words if words[0] == "apr-train" and word.startswith("runs/")}
        if words[0] == "apr-train" and "--init" in words:
            arch, init = (words[words.index(option) + 1] for option in ("--arch", "--init"))
            (tmp_path / init).mkdir(exist_ok=True)
            made.add(run_stem(with_values(Settings(), {"arch": arch, "init": init})))
    assert named
    assert named <= made


RUNNABLE = [page for page in PAGES if fences(page, "sh run")]


@pytest.mark.parametrize("page", RUNNABLE, ids=lambda page: page.name)
def test_lines_that_run_as_they_stand_do(page, tmp_path):
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    variables = {**os.environ, "PATH": path, "APR_TRAIN_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    for text in fences(page, "sh run"):
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", text], cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, f"{text}\n{done.stdout}{done.stderr}"


def test_some_page_has_lines_that_run():
    assert "getting-started.md" in {page.name for page in RUNNABLE}


def tree():
    """Folder → names listed in it, from the README's tree; every line has a phrase."""
    (text,) = [text for text in fences(ROOT / "README.md", "text") if "core/" in text and "Makefile" in text]
    listed, above = {"": set()}, [""]
    for line in text.splitlines():
        name, phrase = line.split(maxsplit=1)
        assert phrase.strip(), line
        depth = (len(line) - len(line.lstrip())) // 2
        folder = above[depth]
        listed.setdefault(folder, set()).add(name.split("/")[0] + ("/" if name.endswith("/") else ""))
        above[depth + 1 :] = [f"{folder}{name}"]
    return listed


def real(folder):
    """Names that git knows, or would take, in a folder."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z", "--", folder or "."]
    files = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")
    inside = [path.removeprefix(folder) for path in files if path and (ROOT / path).exists()]
    return {name.split("/")[0] + ("/" if "/" in name else "") for name in inside}


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a clone")
def test_the_annotated_tree_is_the_real_one():
    for folder, names in tree().items():
        expected = real(folder) - UNLISTED
        if folder == "docs/":
            expected = {name for name in expected if not name.endswith((".md", "/"))}  # the pages are in a table of their own
        assert names == expected, folder or "the root"
