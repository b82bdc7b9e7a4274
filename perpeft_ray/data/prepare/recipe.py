"""Prepared folders with their recipes; resumes an interrupted preparation."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from perpeft_ray.data.folders import file_hash, resumed_folder
from perpeft_ray.data.prepare.database import MemoryBoundError
from perpeft_ray.errors import InputError

RECIPE_FILE = "prepare.json"
SCRATCH = "scratch"
"""Subfolder of a working folder, removed at the end."""


@contextmanager
def preparing(out: Path, recipe: Mapping[str, Any]) -> Iterator[Path | None]:
    """Yield the working folder of `out`, or None if `out` exists with the same recipe.

    A recipe is everything that determines the result, in JSON types. Empties the working folder of
    another recipe first; makes `scratch/` in it and removes that at the end. If the block raises
    InputError, nothing is left, except after a lack of memory, which a rerun may have. Raises
    InputError if `out` is something else.
    """
    _check(out, recipe)
    text = json.dumps(recipe, indent=1, ensure_ascii=False) + "\n"
    with resumed_folder(out.absolute()) as working:
        if working is None:
            _check(out, recipe)  # another process may have just made it
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
    """Eight hexadecimal digits that identify a recipe."""
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:8]


def source_files(*files: Path) -> list[list[str | int]]:
    """Path, size and modification time of raw files, for a recipe: a changed file starts anew."""
    found = ((file.resolve(), file.stat()) for file in files)
    return [[str(path), stat.st_size, stat.st_mtime_ns] for path, stat in found]


def contents(*files: Path) -> list[list[str]]:
    """Path and content hash of raw files, for a recipe; "missing" for a missing file."""
    return [[str(file.resolve()), _content(file)] for file in files]


def contents_hash(folder: Path, names: Iterable[str]) -> str:
    """One hash over the names and bytes of a folder's files, such as its images."""
    digest = hashlib.sha256()
    for name in names:
        digest.update(os.fsencode(name) + f"\0{_content(folder / name)}\0".encode())
    return digest.hexdigest()


def _content(file: Path) -> str:
    return file_hash(file).hex() if file.is_file() else "missing"


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
