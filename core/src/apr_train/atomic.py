"""Replace a file or a whole folder so that a reader, a crash or a full disk never sees half of it.

The new content is written beside the target under a hidden name, fsynced, and renamed. A writer holds a lock on what it
writes; what nobody holds a lock on is litter of a killed process, and the next write to the same target clears it. On a file
system without locks the litter stays.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import re
import secrets
import shutil
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from apr_train import rules
from apr_train.errors import OutputError

_PART = ".part"
_TOKEN = 6
"""Random bytes in the name of a part."""
_SPECIAL = {stat.S_IFCHR: "a device", stat.S_IFBLK: "a device", stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket"}
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_ACCESS_LISTS = ("system.posix_acl_access", "system.posix_acl_default")


@contextmanager
def replace_file(target: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Yield an unbuffered file to read and write; leaving the context without an error puts it in the target's place.

    Its `name` is the path under which it lies until then, for what reads or writes files by path.

    Raises:
        OutputError: when it cannot be written, or is a device, a pipe or a socket (WRITE-003). What was there stays.
    """
    final = _resolve(target)
    with _as_output_errors(final):
        check_replaceable(final)
        clear_litter(final)
        part, descriptor = _claim(final, _create_file)
        with open(part, "r+b", buffering=0, opener=lambda *_: descriptor) as file:  # so that it has its path
            try:
                _keep_access(final, part)
                yield file
                os.fsync(descriptor)
                part.rename(final)
            except BaseException:
                part.unlink(missing_ok=True)
                raise
        _sync(final.parent)


def check_replaceable(target: str | os.PathLike[str]) -> None:
    """Refuse a device, a named pipe or a socket: a rename would put a file where a program expects one of them.

    A folder is refused by the system, once it is written to.

    Raises:
        OutputError: WRITE-003.
    """
    try:
        mode = os.stat(target).st_mode  # noqa: PTH116  # follows a link, as the writer does
    except OSError:
        return  # not there, or not to be reached: then the writing says so
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise OutputError(
            "the target is there, and is no file that could be replaced",
            where=target,
            rule=rules.WRITE_003,
            expected="a regular file, or none",
            found=_SPECIAL.get(stat.S_IFMT(mode), "something else"),
            hint="Give another name.",
        )


def write_file(target: str | os.PathLike[str], content: bytes) -> None:
    """Put `content` in the target's place.

    Raises:
        OutputError: when it cannot be written. The old file is then as it was.
    """
    with replace_file(target) as file:
        write_all(file, content)


def write_all(file: BinaryIO, content: bytes | memoryview) -> int:
    """Write to an unbuffered file until all is written: on a disk that fills up, one call takes a part without an error.

    Returns:
        The number of bytes.

    Raises:
        OSError: when not all of it can be written.
    """
    left = view = memoryview(content)
    while left:
        left = left[file.write(left) :]
    return view.nbytes


@contextmanager
def replace_folder(target: str | os.PathLike[str], *, like: Path | None = None) -> Iterator[Path]:
    """Yield an empty folder to fill; leaving the context without an error puts it in the target's place, as a whole.

    An existing folder is exchanged in one step where the file system can, and is then removed. Where it cannot, a crash
    between two renames leaves the old folder beside the target, and `clear_litter` puts it back. Mode, group and access
    lists of the old folder and of its files pass to the new ones of the same name.

    Args:
        target: the folder.
        like: the folder that a new one, in whose place there is none, takes its access from.

    Raises:
        OutputError: when it cannot be written, or the target is a file. The old folder is then as it was.
    """
    final = _resolve(target)
    if final.exists() and not final.is_dir():
        raise OutputError("not a folder", where=final, hint="Give a folder that does not exist yet, or an earlier one.")
    with _as_output_errors(final):
        clear_litter(final)
        part, lock = _claim(final, _create_folder)
        try:
            mode = _closed(final if final.exists() or like is None else like, part)
            yield part
            _keep_access_of_files(final, part)
            part.chmod(mode)
            _sync_tree(part)
            _put_in_place(part, final)
            _sync(final.parent)
        finally:
            shutil.rmtree(part, ignore_errors=True)
            os.close(lock)


def clear_litter(target: str | os.PathLike[str]) -> list[Path]:
    """Remove what killed writers of this target left beside it; what a live writer holds is left alone.

    Litter is known by the whole of its name: other programs call files `.NAME.part`, too.
    """
    final = _resolve(target)
    ours = re.compile(rf"\.{re.escape(final.name)}\.([0-9a-f]{{{2 * _TOKEN}}}|old){re.escape(_PART)}", re.DOTALL)
    cleared = []
    for part in sorted(path for path in final.parent.glob(f".*{_PART}") if ours.fullmatch(path.name)):
        with _held_by_nobody(part) as is_litter:  # our lock is on it until it is gone: see _claim
            if is_litter:
                _clear(part, final)
                cleared.append(part)
    return cleared


def _clear(part: Path, final: Path) -> None:
    if part.name.endswith(f".old{_PART}") and not final.exists():
        part.rename(final)  # killed between the two renames of a replacement without exchange
    elif part.is_dir() and not part.is_symlink():
        shutil.rmtree(part, ignore_errors=True)
    else:
        part.unlink(missing_ok=True)


@contextmanager
def _as_output_errors(final: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.filename is not None and not str(error.filename).startswith(str(final.parent)):
            raise  # another file's trouble: a source that the caller reads while writing
        hints = {errno.ENOSPC: "Free some space.", errno.EFBIG: "The limit on file sizes is too low."}
        hint = hints.get(error.errno or 0, "Check the path and its permissions.")
        raise OutputError(f"cannot be written ({error.strerror or error})", where=final, hint=hint) from error


def _resolve(target: str | os.PathLike[str]) -> Path:
    """The real path, so that a link stays a link and the rename stays on one file system."""
    return Path(os.path.realpath(target))


def _part_name(final: Path) -> Path:
    return final.with_name(f".{final.name}.{secrets.token_hex(_TOKEN)}{_PART}")


def _claim(final: Path, create: Callable[[Path], int | None]) -> tuple[Path, int]:
    """A new part beside the target, and a descriptor that holds its lock.

    Between its creation and the lock, another writer's `clear_litter` can take it for litter: then another one is made.
    """
    while True:
        part = _part_name(final)
        descriptor = create(part)
        if descriptor is not None and _lock(part, descriptor):
            return part, descriptor


def _create_file(part: Path) -> int:
    return os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)


def _create_folder(part: Path) -> int | None:
    part.mkdir()
    try:
        return os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None  # cleared already


_NO_LOCKS = frozenset({errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL})
"""What flock says on a file system without locks: Lustre mounted without them, some of FUSE's, NFS without its daemon."""


def lock(descriptor: int, *, wait: bool = False) -> bool | None:
    """Lock an open file for this process alone, until the descriptor is closed.

    Returns:
        True when it is held, False when another process holds it, None where the file system has no locks.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return None
        raise
    return True


def _lock(part: Path, descriptor: int) -> bool:
    """Lock a part, where there are locks; False, and closed, when its name is gone by then."""
    try:
        lock(descriptor, wait=True)
        if part.exists():
            return True
    except BaseException:
        os.close(descriptor)
        _clear(part, part)
        raise
    os.close(descriptor)
    return False


@contextmanager
def _held_by_nobody(part: Path) -> Iterator[bool]:
    """Whether no writer holds a part; nobody can get hold of it while the context lasts."""
    try:
        descriptor = os.open(part, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        yield False  # gone already, or not ours to open: not ours to remove either
        return
    try:
        yield lock(descriptor) is True  # without locks nobody knows, and what may be alive is left alone
    finally:
        os.close(descriptor)


def _keep_access(old: Path, new: Path) -> None:
    """Give a new file or folder the owner, group, access lists and mode of the one whose place it takes, if there is one.

    Where the group cannot be kept (it is not one of the user's), nobody but the owner and the world has access: what was
    allowed to one group is not given to another.
    """
    try:
        was, now = old.stat(), new.stat()
    except FileNotFoundError:
        return
    with suppress(OSError):  # root keeps the owner, everybody else is the owner
        os.chown(new, was.st_uid, -1)
    mode = was.st_mode & 0o7777
    try:
        if was.st_gid != now.st_gid:
            os.chown(new, -1, was.st_gid)
        for name in _ACCESS_LISTS if sys.platform == "linux" else ():
            with suppress(OSError):  # the old one has none, or the file system has none
                os.setxattr(new, name, os.getxattr(old, name))
    except OSError:
        mode &= ~0o2070
    new.chmod(mode)  # last: a change of the group clears bits of the mode


def _closed(like: Path, part: Path) -> int:
    """Keep everybody else out of a folder while it is filled; returns the mode that it will have in the target's place."""
    _keep_access(like, part)
    mode = part.stat().st_mode & 0o7777
    part.chmod(0o700)
    return mode


def _keep_access_of_files(old: Path, new: Path) -> None:
    """`_keep_access` for every file and folder inside that the old folder has, too."""
    for root, folders, files in os.walk(new):
        for name in (*folders, *files):
            path = Path(root) / name
            _keep_access(old / path.relative_to(new), path)


_NO_SYNC = frozenset({errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF})
"""What fsync says of a folder where only files can be synced: some of FUSE's file systems, CIFS."""


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not path.is_dir() or error.errno not in _NO_SYNC:
            raise
    finally:
        os.close(descriptor)


def _sync_tree(folder: Path) -> None:
    for root, _, files in os.walk(folder, topdown=False):
        for name in files:
            _sync(Path(root) / name)
        _sync(Path(root))


def _put_in_place(part: Path, final: Path) -> None:
    if not final.exists():
        part.rename(final)
    elif not _exchange(part, final):
        old = final.with_name(f".{final.name}.old{_PART}")
        final.rename(old)
        part.rename(final)
        shutil.rmtree(old, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two paths in one step (Linux renameat2); False where the system or the file system cannot."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    if renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        return False
    raise OSError(code, os.strerror(code), str(other))
