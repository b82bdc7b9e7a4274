"""Unpacks untrusted zip archives: nothing leaves the folder or expands beyond a limit."""

from __future__ import annotations

import hashlib
import logging
import re
import shutil
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from perpeft_ray.errors import InputError

_log = logging.getLogger(__name__)


def unpack(
    archive: Path, folder: Path, target: Callable[[PurePosixPath], str | None], max_bytes: int
) -> None:
    """Write the wanted files of a zip, and of the zips in it, into a folder.

    `target` gives a member's path in `folder`, or None to skip it. Zips inside inner zips are not
    opened. Raises InputError for a damaged zip, a member with an absolute path or '..' (wanted or
    not), a link, two members with one target, and more than `max_bytes` of output, inner zips
    included.
    """
    left = max_bytes

    def write(opened: zipfile.ZipFile, member: zipfile.ZipInfo, file: Path) -> None:
        nonlocal left
        left -= member.file_size  # zipfile reads no more, whatever the member has
        if left < 0:
            raise InputError(
                f"the archive must expand to at most {max_bytes:,} bytes, "
                f"but has more at {member.filename!r}"
            )
        file.parent.mkdir(parents=True, exist_ok=True)
        with opened.open(member) as source, file.open("wb") as new:
            shutil.copyfileobj(source, new)

    def write_wanted(opened: zipfile.ZipFile, where: str) -> None:
        for member in _members(opened, where):
            wanted = target(PurePosixPath(member.filename))
            if wanted is None:
                continue
            if (folder / wanted).exists():
                raise InputError(
                    f"the archive must have one {wanted!r}, but has another in {where!r}"
                )
            write(opened, member, folder / wanted)

    with _opened(archive, archive.name) as outer:
        for member in _members(outer, archive.name):
            if member.filename.lower().endswith(".zip"):
                _log.info("unpacking %s", member.filename)
                inner = folder / ".inner.zip"
                write(outer, member, inner)
                with _opened(inner, member.filename) as opened:
                    write_wanted(opened, member.filename)
                inner.unlink()
        write_wanted(outer, archive.name)


def file_names(archive: Path) -> list[str]:
    """File names in a zip, without folders; reads only its table of contents.

    Raises InputError as `unpack` does.
    """
    with _opened(archive, archive.name) as opened:
        return [PurePosixPath(one.filename).name for one in _members(opened, archive.name)]


def members_hash(archive: Path) -> str:
    """Hash of the names, sizes and checksums in a zip's table of contents.

    Any changed byte, also in an inner zip, changes it. Raises InputError as `unpack`.
    """
    digest = hashlib.sha256()
    with _opened(archive, archive.name) as opened:
        for member in _members(opened, archive.name):
            digest.update(repr((member.filename, member.file_size, member.CRC)).encode())
    return digest.hexdigest()


@contextmanager
def _opened(file: Path, name: str) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(file) as archive:
            yield archive
    # zipfile raises RuntimeError for an encrypted member.
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise InputError(f"{name!r} must be a whole zip archive, but {error}") from error


def _members(archive: zipfile.ZipFile, where: str) -> list[zipfile.ZipInfo]:
    """The files of an archive, all checked."""
    rule = f"{where!r} must have only members inside the folder, but has"
    for member in archive.infolist():
        # The stored name: zipfile's own is cut at a NUL.
        for name in (member.filename, member.orig_filename):
            path = PurePosixPath(name.replace("\\", "/"))
            if path.is_absolute() or ".." in path.parts or re.match("[A-Za-z]:", name):
                raise InputError(f"{rule} {name[:200]!r}")
            if "\0" in name:
                raise InputError(f"{rule} a name with a NUL, {name[:200]!r}")
        if stat.S_ISLNK(member.external_attr >> 16):
            raise InputError(f"{rule} the link {member.filename[:200]!r}")
    return [member for member in archive.infolist() if not member.is_dir()]
