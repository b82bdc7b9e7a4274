"""Keeps a local folder and a URI in step by copying files that differ, either way."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyarrow import fs

from perpeft_ray.data.places import resolve, write_whole
from perpeft_ray.store.files import whole_file

_REQUESTS = 8
"""Concurrent copies: a request to an object store is mostly waiting."""


@dataclass(frozen=True)
class Mirror:
    """A local folder and its copy at a URI; can be sent to other processes.

    A copied file gets the store's modification time on both sides: files with equal time and size
    count as equal. Names with a leading dot are not copied. All methods raise OSError if the store
    cannot be reached, and ValueError for an unknown store.
    """

    here: Path
    there: str

    def fetch(self, part: str = "", *, besides: Collection[str] = ()) -> None:
        """Download the files of a subfolder, or of all but `besides`, that differ from the local
        ones."""
        files, root = resolve(self.there)

        def bring(name: str, info: fs.FileInfo) -> None:
            with files.open_input_stream(info.path) as stream:
                content = stream.read()
            with whole_file(self.here / name) as temporary:
                temporary.write_bytes(content)
            self._date(name, info)

        there = _listed(files, root, part)
        names = (name for name in there if name not in besides and not self._same(name, there))
        _together(bring, [(name, there[name]) for name in names])

    def send(self, names: Iterable[str]) -> None:
        """Upload files, by their paths in the folder, replacing those at the URI."""
        files, root = resolve(self.there)

        def bring(name: str) -> None:
            path = f"{root}/{name}"
            write_whole(files, path, (self.here / name).read_bytes())
            self._date(name, files.get_file_info(path))

        _together(bring, [(name,) for name in names])

    def send_changed(self, parts: Collection[str] = (), *, besides: Collection[str] = ()) -> None:
        """`send` the files of these subfolders, or of all but `besides`, that differ."""
        there = _listed(*resolve(self.there))
        paths = (p.relative_to(self.here) for p in self.here.rglob("*") if p.is_file())
        self.send(
            p.as_posix()
            for p in paths
            if _is_plain(p.parts)
            and (p.parts[0] in parts if parts else p.parts[0] not in besides)
            and not self._same(p.as_posix(), there)
        )

    def _same(self, name: str, there: dict[str, fs.FileInfo]) -> bool:
        file = self.here / name
        if name not in there or not file.is_file():
            return False
        state, info = file.stat(), there[name]
        return (state.st_size, state.st_mtime_ns) == (info.size, info.mtime_ns)

    def _date(self, name: str, info: fs.FileInfo) -> None:
        if info.mtime_ns is not None:  # fsspec's stores give no time: their files always differ
            os.utime(self.here / name, ns=(info.mtime_ns, info.mtime_ns))


def _listed(files: fs.FileSystem, root: str, part: str = "") -> dict[str, fs.FileInfo]:
    """The files below a subfolder, keyed by their paths in the root."""
    start = f"{root}/{part}" if part else root
    found = files.get_file_info(fs.FileSelector(start, recursive=True, allow_not_found=True))
    names = {info.path.removeprefix(f"{root}/"): info for info in found if info.is_file}
    return {name: info for name, info in names.items() if _is_plain(name.split("/"))}


def _is_plain(parts: Iterable[str]) -> bool:
    """Neither hidden nor, since `..` begins with a dot too, outside the folder."""
    return all(part and not part.startswith(".") for part in parts)


def _together(function: Callable[..., None], arguments: Iterable[tuple[Any, ...]]) -> None:
    with ThreadPoolExecutor(_REQUESTS) as pool:
        for done in [pool.submit(function, *given) for given in arguments]:
            done.result()
