"""A prepared folder and the recipe it was made by; a stopped preparation goes on."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from perpeft_ray.data.folders import resumed_folder
from perpeft_ray.data.prepare.database import MemoryBoundError
from perpeft_ray.errors import InputError

RECIPE_FILE = "prepare.json"
SCRATCH = "scratch"
"""Subfolder of a working folder that is removed when it is done."""


@contextmanager
def preparing(out: Path, recipe: Mapping[str, Any]) -> Iterator[Path | None]:
    """Yield the working folder of `out`, or None where `out` is there and has the same recipe.

    A recipe is everything that decides the result, in JSON's types. A working folder that was left
    by another recipe is emptied first; `scratch/` in it is there, and removed at the end. Where the
    block raises InputError nothing is left, except for want of memory, which can be given. Raises
    InputError where `out` is something else.
    """
    _check(out, recipe)
    text = json.dumps(recipe, indent=1, ensure_ascii=False) + "\n"
    with resumed_folder(out.absolute()) as working:
        if working is None:
            _check(out, recipe)  # another process may just have made it
            yield None
            return
        file = working / RECIPE_FILE
        if not file.is_file() or file.read_text(encoding="utf-8") != text:
            for entry in working.iterdir():
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
            file.write_text(text, encoding="utf-8")
        (working / SCRATCH).mkdir(exist_ok=True)
        try:
            yield working
        except MemoryBoundError:
            raise
        except InputError:
            shutil.rmtree(working)
            raise
        shutil.rmtree(working / SCRATCH)


def recipe_key(recipe: Mapping[str, Any]) -> str:
    """Eight hexadecimal digits that name a recipe: of other options or raw files, others."""
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:8]


def source_files(*files: Path) -> list[list[str | int]]:
    """Path, bytes and time of change of raw files, for a recipe: a changed file starts anew."""
    found = ((file.resolve(), file.stat()) for file in files)
    return [[str(path), stat.st_size, stat.st_mtime_ns] for path, stat in found]


def contents(*files: Path) -> list[list[str]]:
    """Path and content hash of raw files, for a recipe; of a file that is not there, "missing"."""
    return [[str(file.resolve()), _content(file)] for file in files]


def contents_hash(folder: Path, names: Iterable[str]) -> str:
    """One hash over the names and bytes of a folder's files, such as its images."""
    digest = hashlib.sha256()
    for name in names:
        digest.update(os.fsencode(name) + f"\0{_content(folder / name)}\0".encode())
    return digest.hexdigest()


def _content(file: Path) -> str:
    if not file.is_file():
        return "missing"
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def begun_to_read(files: Sequence[Path]) -> None:
    """Open each file and read its first byte, through gzip where it is compressed.

    Raises InputError where that cannot be done."""
    for file in files:
        opened = gzip.open if file.suffix == ".gz" else open
        try:
            with opened(file, "rb") as stream:
                empty = not stream.read(1)
        except (OSError, EOFError, zlib.error) as error:
            raise InputError(f"{str(file)!r} must be a readable file, but {error}") from error
        if empty:
            raise InputError(f"{str(file)!r} must be a readable file, but is empty")


def _check(out: Path, recipe: Mapping[str, Any]) -> None:
    if not out.exists():
        return
    file = out / RECIPE_FILE
    if not file.is_file():
        raise InputError(
            f"`out` must be a new folder, but {str(out)!r} is there; remove it or choose another"
        )
    try:
        made_by = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        made_by = None
    if made_by != recipe:
        raise InputError(
            f"`out` must be a new folder or one of the same options, tables and images, "
            f"but {str(out)!r} was made from others; remove it or choose another"
        )
