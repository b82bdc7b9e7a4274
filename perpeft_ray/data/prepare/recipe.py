"""A prepared folder and the recipe it was made by; a stopped preparation goes on."""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from perpeft_ray.data.folders import resumed_folder
from perpeft_ray.errors import InputError

RECIPE_FILE = "prepare.json"
SCRATCH = "scratch"
"""Subfolder of a working folder that is removed when it is done."""


@contextmanager
def preparing(out: Path, recipe: Mapping[str, Any]) -> Iterator[Path | None]:
    """Yield the working folder of `out`, or None where `out` is there and has the same recipe.

    A recipe is everything that decides the result, in JSON's types. A working folder that was left
    by another recipe is emptied first; `scratch/` in it is there, and removed at the end. Raises
    InputError where `out` is something else.
    """
    _check(out, recipe)
    text = json.dumps(recipe, indent=1, ensure_ascii=False) + "\n"
    with resumed_folder(out) as working:
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
        yield working
        shutil.rmtree(working / SCRATCH)


def recipe_key(recipe: Mapping[str, Any]) -> str:
    """Eight hexadecimal digits that name a recipe: of other options or raw files, others."""
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:8]


def source_files(*files: Path) -> list[list[str | int]]:
    """Path, bytes and time of change of raw files, for a recipe: a changed file starts anew."""
    found = ((file.resolve(), file.stat()) for file in files)
    return [[str(path), stat.st_size, stat.st_mtime_ns] for path, stat in found]


def begun_to_read(recipe: Mapping[str, Any]) -> list[Path]:
    """A recipe's raw files, of which each has been opened and its first bytes read, through gzip
    where it is compressed. Raises InputError where that cannot be done."""
    files = [Path(path) for path, *_ in recipe["raw"]]
    for file in files:
        opened = gzip.open if file.suffix == ".gz" else open
        try:
            with opened(file, "rb") as stream:
                empty = not stream.read(1)
        except (OSError, EOFError, zlib.error) as error:
            raise InputError(f"{str(file)!r} must be a readable file, but {error}") from error
        if empty:
            raise InputError(f"{str(file)!r} must be a readable file, but is empty")
    return files


def _check(out: Path, recipe: Mapping[str, Any]) -> None:
    if not out.exists():
        return
    file = out / RECIPE_FILE
    if not file.is_file():
        raise InputError(f"`out` must be a new folder, but {str(out)!r} is there")
    try:
        made_by = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        made_by = None
    if made_by != recipe:
        raise InputError(
            f"`out` must be a new folder or one of the same options and raw files, "
            f"but {str(out)!r} was made by others"
        )
