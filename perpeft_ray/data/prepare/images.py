"""Copies images into a prepared folder, and lists the failures."""

from __future__ import annotations

import csv
import itertools
import re
import shutil
import sys
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from perpeft_ray.data.images import UnreadableImageError, decode_rgb
from perpeft_ray.errors import InputError
from perpeft_ray.screen import console as console_on

FAILURES_FILE = "images_failed.csv"

_CHUNK = 1024
_THREADS = 4


@dataclass(frozen=True)
class Failure:
    """A missing image and the reason."""

    item_id: str
    image: str
    """Its address or path."""
    reason: str
    passing: bool = False
    """Whether a retry may succeed: the server was busy or unreachable."""


@dataclass(frozen=True)
class Copy:
    """A file and where to copy it, if it is a readable image."""

    item_id: str
    source: Path
    target: Path


def copy_images(
    copies: Iterable[Copy], scratch: Path, advance: Callable[[int], None]
) -> list[Failure]:
    """Copy readable images unless already there; returns missing and broken ones, in order.

    A file appears whole or not at all, so a rerun resumes; unfinished ones are in the folder
    `scratch`. `advance` gets the number of images handled.
    """
    failures: list[Failure] = []

    def copy(one: Copy) -> Failure | None:
        if one.target.exists():
            return None
        if not one.source.is_file():
            return Failure(one.item_id, str(one.source), "missing")
        try:
            decode_rgb(one.source)
        except UnreadableImageError:
            return Failure(one.item_id, str(one.source), "not a readable image")
        one.target.parent.mkdir(parents=True, exist_ok=True)
        new = scratch / uuid.uuid4().hex
        shutil.copyfile(one.source, new)
        new.replace(one.target)
        return None

    with ThreadPoolExecutor(_THREADS) as threads:
        remaining = iter(copies)
        while chunk := list(itertools.islice(remaining, _CHUNK)):
            for failure in threads.map(copy, chunk):
                advance(1)
                if failure is not None:
                    failures.append(failure)
    return failures


def write_failures(folder: Path, failures: Sequence[Failure]) -> None:
    """Write `images_failed.csv` (item_id, image, reason, passing); no file without failures."""
    file = folder / FAILURES_FILE
    if not failures:
        file.unlink(missing_ok=True)
        return
    new = file.with_name(f".{file.name}.new")
    with new.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["item_id", "image", "reason", "passing"])
        writer.writerows(
            [failure.item_id, failure.image, failure.reason, "yes" if failure.passing else "no"]
            for failure in failures
        )
    new.replace(file)


def read_failures(folder: Path) -> list[Failure]:
    """Read the file of `write_failures`; empty without a file."""
    file = folder / FAILURES_FILE
    if not file.is_file():
        return []
    with file.open(encoding="utf-8", newline="") as stream:
        return [
            Failure(row["item_id"], row["image"], row["reason"], row.get("passing") == "yes")
            for row in csv.DictReader(stream)
        ]


def check_file_name(what: str, name: str) -> None:
    """Raise InputError if an external name, such as an item id, is not a plain file name."""
    longest = 200  # bytes; file systems take 255, and endings are added
    length = len(name.encode("utf-8", "surrogatepass"))
    if (
        name in ("", ".", "..")
        or set(name) & set("/\\\0")
        or re.search("[\ud800-\udfff]", name)
        or length > longest
    ):
        raise InputError(f"{what} must be a plain file name, but is {name[:80]!r}")


@contextmanager
def image_progress(total: int) -> Iterator[Callable[[int], None]]:
    """Yield the function that advances a progress bar of images, shown in a terminal."""
    console = console_on(sys.stderr)
    with Progress(
        TextColumn("images"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    ) as progress:
        task = progress.add_task("images", total=total)
        yield lambda count: progress.advance(task, count)
