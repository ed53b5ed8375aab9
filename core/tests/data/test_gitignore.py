"""The rules of `.gitignore` files, compared with git itself."""

import os
import random
import shutil
import subprocess

import pytest
from apr_train.data.gitignore import GitIgnore
from apr_train.data.sources import find_files
from apr_train.errors import DataError

NO_OTHER_RULES = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
PATTERNS = (
    *("*.log", "!keep/", "!keep", "build/", "/a", "a/b", "**/b", "b/**", "a/**/y.py", "*", "!*.py", "!*/", "/*", "!/a", "/a/*"),
    *("!/a/b", "keep/*.log", "!x.log", "x.*", "[xy].log", "#c", "\\!x", "a b ", "b/ ", "x\\ ", "", "!", "/", "?", "**/keep/"),
    *("!keep/x.log", "*.l[!o]g", "**", "a/**", "foo[", "\\", "*.log\r"),
)
needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="git says what is right")


def git(folder, *args):
    environment = {**os.environ, **NO_OTHER_RULES}
    return subprocess.run(["git", "-C", folder, *args], env=environment, capture_output=True, text=True, check=True).stdout


def make_tree(top, draw):
    folders = [top]
    for _ in range(7):
        folder = draw.choice(folders) / draw.choice(("a", "b", "keep", "build"))
        if not folder.is_file():
            folder.mkdir(exist_ok=True)
            folders.append(folder)
    for folder in set(folders):
        for name in draw.sample(("a", "b", "keep", "x.log", "y.py", "z.lug"), 3):
            if not (folder / name).is_dir():
                (folder / name).write_text("x")
        if folder == top or draw.random() < 0.35:
            (folder / ".gitignore").write_text("\n".join(draw.choices(PATTERNS, k=draw.randint(1, 4))) + "\n")


@needs_git
@pytest.mark.parametrize("seed", range(60))
def test_the_files_of_a_checkout_are_those_that_git_does_not_ignore(tmp_path, seed):
    top = tmp_path / "checkout"
    top.mkdir()
    git(top, "init", "-q")
    make_tree(top, random.Random(seed))
    listed = git(top, "ls-files", "--others", "--exclude-per-directory=.gitignore", "-z").split("\0")
    expected = [top / name for name in listed if name and not name.endswith(".gitignore")]
    try:
        found = find_files([str(top)], notice=lambda _: None)
    except DataError:
        found = []
    assert sorted(found) == sorted(expected)
    both = (str(top / "**" / "*"), str(top / "*" / "**"))
    try:
        assert sorted(find_files(both[:1], notice=lambda _: None)) == sorted(expected)
    except DataError:
        assert expected == []


@needs_git
def test_a_file_in_an_ignored_folder_is_as_git_says_it_is(tmp_path):
    git(tmp_path, "init", "-q")
    (tmp_path / ".gitignore").write_text("build/\n!build/keep.py\n")
    (tmp_path / "build").mkdir()
    (tmp_path / "build" / "keep.py").write_text("x")
    assert git(tmp_path, "check-ignore", "build/keep.py") == "build/keep.py\n"
    assert GitIgnore(tmp_path).leaves_out_on_the_way(tmp_path / "build" / "keep.py")


@pytest.fixture
def checkout(tmp_path):
    for name in (".git/HEAD", "src/a.py", "src/b.log", "data/one.txt", "data/two.log", "data/.gitignore", ".gitignore"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("text\n")
    (tmp_path / ".gitignore").write_text("*.log\n/data/\n")
    (tmp_path / "data" / ".gitignore").write_text("one.txt\n")
    return tmp_path


def test_what_git_ignores_is_left_out_with_one_notice_that_counts(checkout, notices):
    assert find_files([str(checkout)], notice=notices.append) == [checkout / "src" / "a.py"]
    left_out = f"2 ({checkout / 'data'}, {checkout / 'src' / 'b.log'})"
    assert notices == [f"{checkout}: left out: by .gitignore: {left_out}"]


def test_the_rules_of_folders_above_hold_below_unless_they_leave_out_the_named_folder_itself(checkout):
    assert find_files([str(checkout / "src")], notice=str) == [checkout / "src" / "a.py"]
    assert find_files([str(checkout / "data")], notice=str) == [checkout / "data" / "two.log"]
    assert find_files([str(checkout / "data" / "*.log")], notice=str) == [checkout / "data" / "two.log"]


def test_a_named_file_is_taken_and_the_setting_takes_all(checkout):
    named = checkout / "src" / "b.log"
    assert find_files([str(named)], notice=str) == [named]
    assert len(find_files([str(checkout)], notice=str, gitignore=False)) == 4


@pytest.mark.rule("PREFLIGHT-025")
def test_a_folder_of_which_nothing_is_left_says_what_was_left_out_and_how_to_take_it(checkout):
    (checkout / "src" / "a.py").write_bytes(b"a\0")
    with pytest.raises(DataError) as caught:
        find_files([str(checkout / "src")], notice=str)
    found = caught.value.finding.found
    assert "by .gitignore: 1" in found
    assert "with NUL bytes: 1" in found
    assert "--no-gitignore" in caught.value.finding.hint


def test_a_checkout_inside_another_has_rules_of_its_own(checkout):
    inner = checkout / "src" / "inner"
    (inner / ".git").mkdir(parents=True)
    (inner / "c.log").write_text("text")
    assert find_files([str(checkout / "src")], notice=str) == [checkout / "src" / "a.py", inner / "c.log"]


def test_outside_of_a_checkout_the_file_means_nothing(tmp_path):
    (tmp_path / ".gitignore").write_text("*.log\n")
    (tmp_path / "a.log").write_text("text")
    assert find_files([str(tmp_path)], notice=str) == [tmp_path / "a.log"]


@pytest.mark.parametrize("pattern", ["*a" * 20 + "b", "**/a" * 9])
def test_a_pattern_that_matches_without_an_end_is_refused(tmp_path, pattern):
    """Of a name of 250 letters, five wildcards have 250^5 ways."""
    (tmp_path / ".git").mkdir()
    (tmp_path / ("a" * 250)).write_text("x " * 99)
    (tmp_path / ".gitignore").write_text(f"# {'* ' * 9}\n{pattern}\n")
    with pytest.raises(DataError, match=r"\.gitignore \[line 2\]: a pattern that takes too long.*--no-gitignore"):
        find_files([str(tmp_path)], notice=str)
    assert len(find_files([str(tmp_path)], notice=str, gitignore=False)) == 1


def test_a_file_of_megabytes_is_refused(tmp_path):
    (tmp_path / ".git").mkdir()
    (tmp_path / "a.txt").write_text("x " * 99)
    (tmp_path / ".gitignore").write_text("x\n" * (1 << 19) + "y")
    with pytest.raises(DataError, match=r"too large for what it is, expected at most 1,048,576 bytes"):
        find_files([str(tmp_path)], notice=str)
