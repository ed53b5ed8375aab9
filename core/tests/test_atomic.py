"""Files and folders are replaced as a whole or not at all."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import subprocess
import sys

import apr_train.atomic
import pytest
from apr_train.atomic import clear_litter, replace_file, replace_folder, write_file
from apr_train.errors import OutputError


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_with_its_whole_content(tmp_path):
    with replace_file(tmp_path / "x") as file:
        file.write(b"new")
        assert not (tmp_path / "x").exists()
    assert (tmp_path / "x").read_bytes() == b"new"
    assert names(tmp_path) == ["x"]


def test_a_failure_leaves_the_old_file(tmp_path):
    (tmp_path / "x").write_bytes(b"old")
    with pytest.raises(ZeroDivisionError), replace_file(tmp_path / "x") as file:
        file.write(b"n" * (1 // 0))
    assert (tmp_path / "x").read_bytes() == b"old"
    assert names(tmp_path) == ["x"]


FULL = """
import resource, sys
from apr_train.atomic import write_file
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
write_file(sys.argv[1], b"x" * 5000)
"""


def test_a_part_that_still_fits_is_not_taken_for_all(tmp_path):
    target = tmp_path / "a"
    target.write_bytes(b"old")
    ended = subprocess.run([sys.executable, "-c", FULL, target], check=False, capture_output=True, text=True)
    assert "OutputError" in ended.stderr
    assert target.read_bytes() == b"old"


def test_permissions_follow_the_old_file_or_the_umask(tmp_path):
    (tmp_path / "x").write_bytes(b"old")
    (tmp_path / "x").chmod(0o640)
    old = os.umask(0o022)
    try:
        for name in ("x", "y"):
            with replace_file(tmp_path / name) as file:
                file.write(b"new")
    finally:
        os.umask(old)
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "y").stat().st_mode & 0o777 == 0o644


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real/x")
    with replace_file(tmp_path / "link") as file:
        file.write(b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "x").read_bytes() == b"new"


@pytest.mark.rule("WRITE-003")
@pytest.mark.parametrize("how", ["itself", "link"])
def test_a_named_pipe_is_not_replaced_by_a_file(tmp_path, how):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    target = tmp_path / ("pipe" if how == "itself" else "link")
    with pytest.raises(OutputError, match="found a named pipe") as caught:
        write_file(target, b"new")
    assert caught.value.finding.rule == "WRITE-003"
    assert (tmp_path / "pipe").is_fifo()
    assert names(tmp_path) == ["link", "pipe"]


@pytest.mark.parametrize("target", ["missing/x", "file/x"])
def test_a_place_that_cannot_be_written_is_an_output_error(tmp_path, target):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError, match="cannot be written"), replace_file(tmp_path / target):
        pass
    with pytest.raises(OutputError, match="cannot be written"), replace_folder(tmp_path / target):
        pass


def test_trouble_with_another_file_is_not_called_an_output_error(tmp_path):
    with pytest.raises(FileNotFoundError), replace_file(tmp_path / "a" / ".." / "x"):
        open("/nonexistent/source")  # noqa: SIM115, PTH123 # it does not open


def test_a_folder_appears_as_a_whole(tmp_path):
    with replace_folder(tmp_path / "run") as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "x").write_bytes(b"new")
        assert not (tmp_path / "run").exists()
    assert (tmp_path / "run" / "sub" / "x").read_bytes() == b"new"
    assert names(tmp_path) == ["run"]


@pytest.mark.parametrize("exchange", [True, False])
def test_an_existing_folder_is_replaced_as_a_whole(tmp_path, monkeypatch, exchange):
    if not exchange:
        monkeypatch.setattr(apr_train.atomic, "_exchange", lambda one, other: False)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "old").write_bytes(b"old")
    with replace_folder(tmp_path / "run") as folder:
        (folder / "new").write_bytes(b"new")
    assert names(tmp_path / "run") == ["new"]
    assert names(tmp_path) == ["run"]


def test_a_failure_leaves_the_old_folder(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "old").write_bytes(b"old")
    with pytest.raises(ZeroDivisionError), replace_folder(tmp_path / "run") as folder:
        (folder / "new").write_bytes(b"n" * (1 // 0))
    assert names(tmp_path / "run") == ["old"]
    assert names(tmp_path) == ["run"]


def test_a_file_is_not_replaced_by_a_folder(tmp_path):
    (tmp_path / "run").write_bytes(b"")
    with pytest.raises(OutputError, match="not a folder"), replace_folder(tmp_path / "run"):
        pass


KILLED = """
import os, sys
from pathlib import Path
from apr_train.atomic import replace_file, replace_folder
with replace_file(sys.argv[1] + "/x") as file, replace_folder(sys.argv[1] + "/run") as folder:
    file.write(b"half")
    (folder / "half").write_bytes(b"half")
    os.kill(os.getpid(), 9)
"""


def test_litter_of_a_killed_process_is_cleared_by_the_next_write(tmp_path):
    (tmp_path / "x").write_bytes(b"old")
    assert subprocess.run([sys.executable, "-c", KILLED, tmp_path], check=False, timeout=60).returncode == -9
    assert (tmp_path / "x").read_bytes() == b"old"
    assert len(names(tmp_path)) == 3
    with replace_file(tmp_path / "x") as file, replace_folder(tmp_path / "run") as folder:
        file.write(b"new")
        (folder / "whole").write_bytes(b"")
    assert names(tmp_path) == ["run", "x"]
    assert names(tmp_path / "run") == ["whole"]


def test_a_live_writer_is_left_alone(tmp_path):
    with replace_file(tmp_path / "x") as file, replace_folder(tmp_path / "run"):
        assert clear_litter(tmp_path / "x") == []
        assert clear_litter(tmp_path / "run") == []
        file.write(b"new")
    assert names(tmp_path) == ["run", "x"]


def test_litter_of_another_target_is_left_alone(tmp_path):
    (tmp_path / ".xy.0123456789ab.part").write_bytes(b"")
    with replace_file(tmp_path / "x") as file:
        file.write(b"new")
    assert names(tmp_path) == [".xy.0123456789ab.part", "x"]


def test_a_folder_moved_aside_by_a_killed_process_is_put_back(tmp_path):
    (tmp_path / ".run.old.part").mkdir()
    (tmp_path / ".run.old.part" / "old").write_bytes(b"old")
    with pytest.raises(RuntimeError), replace_folder(tmp_path / "run"):
        raise RuntimeError
    assert names(tmp_path / "run") == ["old"]


@pytest.mark.parametrize("name", ["a[1]", "a*b", "a?"])
def test_special_characters_in_a_name_match_only_themselves(tmp_path, name):
    token = "0123456789ab"
    for other in (name, "aXb", "a1"):
        (tmp_path / f".{other}.{token}.part").write_bytes(b"")
    assert [path.name for path in clear_litter(tmp_path / name)] == [f".{name}.{token}.part"]


@pytest.mark.parametrize("name", [".x.part", ".x.mp4.part", ".x.00.part", ".x.0123456789abc.part", ".x.older.part"])
def test_what_another_program_calls_so_is_no_litter(tmp_path, name):
    (tmp_path / name).write_bytes(b"theirs")
    assert clear_litter(tmp_path / "x") == []
    assert names(tmp_path) == [name]


@pytest.mark.parametrize("replace", [replace_file, replace_folder])
def test_a_part_that_is_cleared_before_its_lock_is_made_again(tmp_path, monkeypatch, replace):
    flock, cleared = fcntl.flock, []

    def late(descriptor, operation):
        if operation == fcntl.LOCK_EX and not cleared:
            cleared.extend(clear_litter(tmp_path / "x"))  # another writer of this target, at the worst moment
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    with replace(tmp_path / "x"):
        assert len(names(tmp_path)) == 1
    assert len(cleared) == 1
    assert names(tmp_path) == ["x"]


def test_a_folder_that_is_cleared_before_it_is_opened_is_made_again(tmp_path, monkeypatch):
    open_, cleared = os.open, []

    def late(path, flags, *rest):
        if flags & os.O_DIRECTORY and not cleared:
            cleared.extend(clear_litter(tmp_path / "x"))
        return open_(path, flags, *rest)

    monkeypatch.setattr(os, "open", late)
    with replace_folder(tmp_path / "x"):
        assert len(names(tmp_path)) == 1
    assert len(cleared) == 1


def test_litter_is_locked_until_it_is_gone(tmp_path, monkeypatch):
    litter = tmp_path / ".x.0123456789ab.part"
    litter.write_bytes(b"")
    unlink, refused = os.unlink, []

    def watched(path, **how):
        with litter.open() as file, pytest.raises(BlockingIOError):
            refused.append(path)
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        unlink(path, **how)

    monkeypatch.setattr(os, "unlink", watched)
    assert clear_litter(tmp_path / "x") == [litter]
    assert refused == [litter]


def test_writers_of_one_target_at_the_same_time_all_succeed(tmp_path):
    code = (
        "import sys\nfrom apr_train.atomic import replace_file\n"
        "for number in range(150):\n"
        "    with replace_file(sys.argv[1]) as file:\n"
        "        file.write(sys.argv[2].encode() * 100)\n"
    )
    writers = [subprocess.Popen([sys.executable, "-c", code, tmp_path / "x", name]) for name in "ab"]
    assert [writer.wait(timeout=60) for writer in writers] == [0, 0]
    assert (tmp_path / "x").read_bytes() in (b"a" * 100, b"b" * 100)
    assert names(tmp_path) == ["x"]


def modes(folder):
    return {path.name: path.stat().st_mode & 0o7777 for path in (folder, *folder.rglob("*"))}


def test_a_private_folder_and_private_files_stay_private_when_they_are_written_again(tmp_path):
    out = tmp_path / "out"
    (out / "sub").mkdir(parents=True)
    for name in ("secret", "open", "sub/secret"):
        (out / name).write_bytes(b"old")
    for name, mode in (("secret", 0o600), ("open", 0o644), ("sub/secret", 0o600), ("sub", 0o700), (".", 0o750)):
        (out / name).chmod(mode)
    before = modes(out)
    old = os.umask(0o022)
    try:
        with replace_folder(out) as folder:
            assert folder.stat().st_mode & 0o777 == 0o700  # nobody else sees what is not in its place yet
            (folder / "sub").mkdir()
            for name in ("secret", "open", "sub/secret", "new"):
                (folder / name).write_bytes(b"new")
    finally:
        os.umask(old)
    assert modes(out) == {**before, "new": 0o644}


def test_a_new_folder_has_the_mode_of_the_umask(tmp_path):
    old = os.umask(0o027)
    try:
        with replace_folder(tmp_path / "x"):
            pass
    finally:
        os.umask(old)
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o750


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another group at will")
def test_the_owner_and_the_group_are_kept(tmp_path):
    (tmp_path / "x").write_bytes(b"old")
    os.chown(tmp_path / "x", 1234, 4321)
    with replace_file(tmp_path / "x") as file:
        file.write(b"new")
    assert ((tmp_path / "x").stat().st_uid, (tmp_path / "x").stat().st_gid) == (1234, 4321)


def test_a_group_that_cannot_be_kept_does_not_pass_its_access_to_another(tmp_path, monkeypatch):
    (tmp_path / "x").write_bytes(b"old")
    (tmp_path / "x").chmod(0o664)
    real = os.stat
    chown = lambda *_: (_ for _ in ()).throw(PermissionError)  # noqa: E731
    monkeypatch.setattr(os, "chown", chown)

    class Elsewhere:
        """The old file as if it were another group's."""

        def __init__(self, status):
            self.st_mode, self.st_uid, self.st_gid = status.st_mode, status.st_uid, status.st_gid + 1

    monkeypatch.setattr(
        type(tmp_path), "stat", lambda path, **how: Elsewhere(real(path)) if path.name == "x" else real(path, **how)
    )
    with replace_file(tmp_path / "x") as file:
        file.write(b"new")
    assert real(tmp_path / "x").st_mode & 0o777 == 0o604


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.EIO])
def test_folders_that_cannot_be_synced_are_gone_on_without_and_a_failing_disk_is_not(tmp_path, monkeypatch, number):
    fsync = os.fsync

    def refuse(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", refuse)
    if number == errno.EIO:
        with pytest.raises(OutputError):
            write_file(tmp_path / "x", b"a")
    else:
        write_file(tmp_path / "x", b"a")
        assert (tmp_path / "x").read_bytes() == b"a"
