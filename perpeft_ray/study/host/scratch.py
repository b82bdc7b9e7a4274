"""Temporary folders for Ray's and Tune's own files; Ray's path is short enough for sockets."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from perpeft_ray.errors import InputError

_LONGEST_SOCKET = 107
"""Longest path of a socket on Linux, in bytes; macOS allows 103, covered by the slack below."""
_SOCKET = "/ray/session_2000-01-01_00-00-00_000000_0000000/sockets/plasma_store"
_SLACK = 4
_PREFIX = "perpeft-"
_LOCK = ".in-use"
_SHORT_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")
_VARIABLE = "RAY_TMPDIR"


@contextmanager
def ray_folder() -> Iterator[None]:
    """Give Ray a new folder for its sockets and logs, which is removed after the block.

    It is below `TMPDIR`, or below `/tmp` if that is too long. Also removes leftovers of killed
    processes. With `RAY_TMPDIR` set, makes and removes nothing.

    Raises InputError if `RAY_TMPDIR` is too long, or no short folder is writable.
    """
    given = os.environ.get(_VARIABLE)
    if given is not None:
        if not _is_short(given):
            raise InputError(
                f"`{_VARIABLE}` must be at most {_room()} bytes long for Ray's sockets, but is "
                f"{given}"
            )
        with _short_tmpdir(given):
            yield
        return
    with scratch_folder(_PREFIX, _base()) as folder:
        os.environ[_VARIABLE] = str(folder)
        try:
            with _short_tmpdir(str(folder)):
                yield
        finally:
            del os.environ[_VARIABLE]


@contextmanager
def _short_tmpdir(folder: str) -> Iterator[None]:
    """Replace a `TMPDIR` that is too long for Ray's processes: the dashboard has sockets there."""
    before = os.environ.get("TMPDIR")
    if before is None or _is_short(before):
        yield
        return
    os.environ["TMPDIR"] = folder
    try:
        yield
    finally:
        os.environ["TMPDIR"] = before


@contextmanager
def scratch_folder(prefix: str, base: str | None = None) -> Iterator[Path]:
    """Yield a new folder, below `TMPDIR` by default, which is removed after the block.

    Also removes folders of this kind left by killed processes.
    """
    base = base or tempfile.gettempdir()
    _remove_left(prefix, base)
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=base))
    try:
        with FileLock(folder / _LOCK):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _base() -> str:
    ending = f"/{_PREFIX}{'x' * 8}"
    for folder in (tempfile.gettempdir(), *_SHORT_FOLDERS):
        if _is_short(folder + ending) and os.access(folder, os.W_OK | os.X_OK):
            return folder
    raise InputError(
        f"`TMPDIR` must be at most {_room() - len(ending)} bytes long for Ray's sockets, but is "
        f"{tempfile.gettempdir()}, and none of {', '.join(_SHORT_FOLDERS)} can be written"
    )


def _remove_left(prefix: str, base: str) -> None:
    """Remove the folders of ended processes, whose lock is free."""
    for lock in Path(base).glob(f"{prefix}*/{_LOCK}"):
        try:
            with FileLock(lock, timeout=0):
                shutil.rmtree(lock.parent, ignore_errors=True)
        except (Timeout, OSError):  # in use, or another user's
            continue


def _is_short(folder: str) -> bool:
    return len(os.fsencode(folder)) <= _room()


def _room() -> int:
    return _LONGEST_SOCKET - len(_SOCKET) - _SLACK
