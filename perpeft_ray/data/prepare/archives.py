"""Unpacks untrusted zip archives: nothing leaves the folder or expands beyond a limit."""

from __future__ import annotations

import hashlib
import logging
import re
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO

from perpeft_ray.errors import InputError

_BLOCK = 1 << 20

_log = logging.getLogger(__name__)


def unpack(
    archive: Path, folder: Path, target: Callable[[PurePosixPath], str | None], max_bytes: int
) -> None:
    """Write the wanted files of a zip, and of the zips in it, into a folder.

    `target` gives a member's path in `folder`, or None to skip it. Zips inside inner zips are not
    opened. Raises InputError for a damaged zip, a member with an absolute path or '..' (wanted or
    not), a link, two members with one target, and more than `max_bytes` of output, inner zips
    included; headers are not trusted.
    """
    budget = _Budget(max_bytes)
    with _opened(archive, archive.name) as outer:
        for name, member in _members(outer, archive.name):
            if name.suffix.lower() == ".zip":
                _log.info("unpacking %s", name)
                inner = folder / ".inner.zip"
                _write(outer, member, inner, budget)
                with _opened(inner, member.filename) as inside:
                    _unpack_wanted(inside, member.filename, folder, target, budget)
                inner.unlink()
        _unpack_wanted(outer, archive.name, folder, target, budget)


def file_names(archive: Path) -> list[str]:
    """File names in a zip, without folders; reads only its table of contents.

    Raises InputError as `unpack` does.
    """
    with _opened(archive, archive.name) as opened:
        return [name.name for name, _ in _members(opened, archive.name)]


def members_hash(archive: Path) -> str:
    """Hash of the names, sizes and checksums in a zip's table of contents.

    Any changed byte, also in an inner zip, changes it. Raises InputError as `unpack`.
    """
    digest = hashlib.sha256()
    with _opened(archive, archive.name) as opened:
        for _, member in _members(opened, archive.name):
            digest.update(repr((member.filename, member.file_size, member.CRC)).encode())
    return digest.hexdigest()


class _Budget:
    """Bytes that may still be written."""

    def __init__(self, limit: int) -> None:
        self._limit = self._left = limit

    def spend(self, count: int, where: str) -> None:
        self._left -= count
        if self._left < 0:
            raise InputError(
                f"the archive must expand to at most {self._limit:,} bytes, "
                f"but has more at {where!r}"
            )


@contextmanager
def _opened(file: Path, name: str) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(file) as archive:
            yield archive
    # zipfile raises RuntimeError for an encrypted member.
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise InputError(f"{name!r} must be a whole zip archive, but {error}") from error


def _members(
    archive: zipfile.ZipFile, where: str
) -> Iterator[tuple[PurePosixPath, zipfile.ZipInfo]]:
    """The files of an archive, all checked before the first is yielded."""
    members = archive.infolist()
    for member in members:
        rule = f"{where!r} must have only members inside the folder, but has"
        # The stored name: zipfile's own is cut at a NUL.
        for name in (member.filename, member.orig_filename):
            path = PurePosixPath(name.replace("\\", "/"))
            if path.is_absolute() or ".." in path.parts or re.match("[A-Za-z]:", name):
                raise InputError(f"{rule} {name[:200]!r}")
            if "\0" in name:
                raise InputError(f"{rule} a name with a NUL, {name[:200]!r}")
        if stat.S_ISLNK(member.external_attr >> 16):
            raise InputError(f"{rule} the link {member.filename[:200]!r}")
    for member in members:
        if not member.is_dir():
            yield PurePosixPath(member.filename), member


def _unpack_wanted(
    archive: zipfile.ZipFile,
    where: str,
    folder: Path,
    target: Callable[[PurePosixPath], str | None],
    budget: _Budget,
) -> None:
    for name, member in _members(archive, where):
        wanted = target(name)
        if wanted is None:
            continue
        file = folder / wanted
        if file.exists():
            raise InputError(f"the archive must have one {wanted!r}, but has another in {where!r}")
        file.parent.mkdir(parents=True, exist_ok=True)
        _write(archive, member, file, budget)


def _write(archive: zipfile.ZipFile, member: zipfile.ZipInfo, file: Path, budget: _Budget) -> None:
    source: IO[bytes]
    with archive.open(member) as source, file.open("wb") as new:
        while block := source.read(_BLOCK):
            budget.spend(len(block), member.filename)
            new.write(block)
