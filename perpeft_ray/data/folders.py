"""Folders that appear whole or not at all, even if several processes make the same one."""

from __future__ import annotations

import hashlib
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
_MARK = "items.done"


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `folder`, renamed to it when the block ends.

    If another process was faster, its folder stays. The temporary folder is then removed, as it is
    when the block raises. Parents are created, and removed again when the block raises.
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


def file_hash(file: Path) -> bytes:
    """SHA-256 of a file's content, 32 bytes."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()


def link_or_copy(source: Path | str, target: Path | str) -> None:
    """Make a hard link to a file, or a copy if the file system has none."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


@contextmanager
def resumed_folder(folder: Path) -> Iterator[Path | None]:
    """Yield the working folder of `folder`, renamed when the block ends; None if `folder` exists.

    For long work: the working folder (`.NAME.unfinished` beside it) survives an error or a kill, so
    that the next process resumes it. One process works on it at a time; others wait. A block that
    removes the working folder and raises leaves nothing behind, also no new parents.
    """
    made = [parent for parent in folder.parents if not parent.exists()]
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.with_name(f".{folder.name}.lock"))
    working = folder.with_name(f".{folder.name}.unfinished")
    try:
        Path(lock.lock_file).touch()  # raises where FileLock would wait forever
        with lock:
            if folder.is_dir():
                yield None
            else:
                working.mkdir(exist_ok=True)
                yield working
                working.rename(folder)
            # Processes still waiting for this file then find the folder.
            Path(lock.lock_file).unlink(missing_ok=True)
    finally:
        if not working.exists():
            Path(lock.lock_file).unlink(missing_ok=True)
            _remove_empty(made)


def remove_unfinished(folder: Path) -> None:
    """Remove the leftovers of a stopped `resumed_folder`, unless a process works there."""
    lock = FileLock(folder.with_name(f".{folder.name}.lock"), timeout=0)
    with suppress(Timeout), lock:
        shutil.rmtree(folder.with_name(f".{folder.name}.unfinished"), ignore_errors=True)
        Path(lock.lock_file).unlink(missing_ok=True)


def _remove_empty(folders: list[Path]) -> None:
    """Remove folders, innermost first, up to the first that is not empty."""
    with suppress(OSError):
        for folder in folders:
            folder.rmdir()


def _remove_stale(folder: Path) -> None:
    """Remove temporary folders of `new_folder` that were last written over a day ago."""
    for entry in folder.parent.iterdir():
        name, _, ending = entry.name.rpartition(".")
        if name == f".{folder.name}" and re.fullmatch("[0-9a-f]{32}", ending):
            with suppress(OSError):  # its process is renaming or removing it
                if time.time() - entry.stat().st_mtime > _STALE_SECONDS:
                    shutil.rmtree(entry)


class ResumedArrays:
    """Memory-mapped .npy files of a working folder, written in steps that survive a kill."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._mark = folder, folder / _MARK
        self.done = steps_done(folder)
        """Finished steps."""
        self._arrays: dict[str, np.memmap] = {}

    def array(self, name: str, dtype: DTypeLike, shape: tuple[int, ...]) -> np.memmap:
        """An array of this dtype and shape: zeros, or what finished steps have written."""
        if name not in self._arrays:
            file = self._folder / f"{name}.npy"
            self._arrays[name] = (
                np.lib.format.open_memmap(file, mode="r+")
                if self.done
                else np.lib.format.open_memmap(file, mode="w+", dtype=np.dtype(dtype), shape=shape)
            )
        return self._arrays[name]

    def settle(self, done: int) -> None:
        """Flush the arrays to disk, release their memory, and record the finished steps."""
        for array in self._arrays.values():
            array.flush()
            if isinstance(array.base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):  # no Windows
                array.base.madvise(mmap.MADV_DONTNEED)
        new = self._mark.with_name(f"{_MARK}.new")
        new.write_text(str(done))
        new.replace(self._mark)
        self.done = done

    def finish(self) -> None:
        """Remove the record of steps."""
        self._mark.unlink(missing_ok=True)


def steps_done(folder: Path) -> int:
    """The number of finished steps that `ResumedArrays` has recorded in a folder."""
    mark = folder / _MARK
    return int(mark.read_text()) if mark.exists() else 0
