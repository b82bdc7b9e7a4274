"""Folders that appear whole or not at all, also with several processes making the same one."""

from __future__ import annotations

import mmap
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import DTypeLike

_STALE_SECONDS = 24 * 3600


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `folder`, renamed to it when the block ends.

    Where another process was faster, its folder stays and the temporary one is removed, as it is
    when the block raises. Parents are made, and removed again when the block raises.
    """
    made = [parent for parent in folder.parents if not parent.exists()]
    folder.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(folder)
    # Not tempfile.mkdtemp: its mode 0700 would hide a shared cache from other users.
    temporary = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
    temporary.mkdir()
    try:
        yield temporary
        try:
            temporary.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        _remove_empty(made)


def link_or_copy(source: Path | str, target: Path | str) -> None:
    """A hard link to a file, or a copy of it where the file system has none."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


@contextmanager
def resumed_folder(folder: Path) -> Iterator[Path | None]:
    """Yield the working folder of `folder`, renamed to it when the block ends; None if it is there.

    For long work: the working folder (`.NAME.unfinished` beside it) outlives a raise or a kill, and
    whoever comes next finds in it what was done. One process works on it, others wait for it. A
    block that removes the working folder and raises leaves nothing, nor the parents that were made.
    """
    made = [parent for parent in folder.parents if not parent.exists()]
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.with_name(f".{folder.name}.lock"))
    working = folder.with_name(f".{folder.name}.unfinished")
    try:
        with lock:
            if folder.is_dir():
                yield None
            else:
                working.mkdir(exist_ok=True)
                yield working
                working.rename(folder)
            # Whoever still waits for this file finds the folder done.
            Path(lock.lock_file).unlink(missing_ok=True)
    finally:
        if not working.exists():
            Path(lock.lock_file).unlink(missing_ok=True)
            _remove_empty(made)


def remove_unfinished(folder: Path) -> None:
    """Remove what a stopped `resumed_folder` has left, unless a process is at work there."""
    lock = FileLock(folder.with_name(f".{folder.name}.lock"), timeout=0)
    with suppress(Timeout), lock:
        shutil.rmtree(folder.with_name(f".{folder.name}.unfinished"), ignore_errors=True)
        Path(lock.lock_file).unlink(missing_ok=True)


def _remove_empty(folders: list[Path]) -> None:
    """Remove folders, innermost first, up to the first that has something."""
    with suppress(OSError):
        for folder in folders:
            folder.rmdir()


def _remove_stale(folder: Path) -> None:
    """Remove the temporary folders of `new_folder` that were last written to a day ago."""
    for entry in folder.parent.iterdir():
        name, _, ending = entry.name.rpartition(".")
        if name == f".{folder.name}" and re.fullmatch("[0-9a-f]{32}", ending):
            with suppress(OSError):  # its own process is renaming or removing it
                if time.time() - entry.stat().st_mtime > _STALE_SECONDS:
                    shutil.rmtree(entry)


def resumed_array(file: Path, dtype: DTypeLike, shape: tuple[int, ...], resume: bool) -> np.memmap:
    """A memory-mapped .npy file to write to: zeros, or with `resume` as it was left."""
    if resume:
        return np.lib.format.open_memmap(file, mode="r+")
    # A fresh file reads as zeros.
    return np.lib.format.open_memmap(file, mode="w+", dtype=np.dtype(dtype), shape=shape)


def settle(array: np.memmap) -> None:
    """Write what was set in a memory-mapped file to disk, and give its memory back."""
    array.flush()
    if isinstance(array.base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):  # not on Windows
        array.base.madvise(mmap.MADV_DONTNEED)


def read_mark(file: Path) -> int:
    """How many steps `write_mark` has noted in a file as done; 0 where it is not there."""
    return int(file.read_text()) if file.exists() else 0


def write_mark(file: Path, done: int) -> None:
    """Note the number of steps that are done, so that a kill leaves the old number or the new."""
    new = file.with_name(f"{file.name}.new")
    new.write_text(str(done))
    new.replace(file)
