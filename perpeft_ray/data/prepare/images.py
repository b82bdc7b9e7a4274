"""Copies or downloads the images of a new folder, and lists the failures."""

from __future__ import annotations

import csv
import itertools
import re
import shutil
import sys
import uuid
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import urllib3
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from urllib3.exceptions import (
    DecodeError,
    HTTPError,
    LocationValueError,
    MaxRetryError,
    URLSchemeUnknown,
)
from urllib3.util import Retry, Timeout

from perpeft_ray.data.images import UnreadableImageError, decode_rgb
from perpeft_ray.errors import InputError
from perpeft_ray.screen import console as console_on

FAILURES_FILE = "images_failed.csv"

_CHUNK = 1024
"""Images handed to the threads at a time: bounds memory, not concurrency."""
_COPYING_THREADS = 4
_BUSY = (408, 425, 429, *range(500, 600))
"""HTTP statuses worth a retry."""
_FOR_GOOD = (LocationValueError, URLSchemeUnknown, DecodeError)
"""urllib3 errors that a retry does not fix."""


@dataclass(frozen=True)
class WantedImage:
    """An image and its file in the new folder."""

    item_id: str
    source: str
    """Its address or path."""
    file: Path


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
class Limits:
    """Limits of a download."""

    connections: int = 16
    """Concurrent images."""
    attempts: int = 5
    """Requests per image; the pause doubles after each, unless Retry-After sets it."""
    first_pause: float = 0.5
    """First pause in seconds."""
    timeout: float = 30.0
    """Seconds to connect, and to wait for a byte."""
    max_bytes: int = 20_000_000
    """Largest image; a larger one is a failure."""


class _FailedError(Exception):
    """An image that cannot be had, and why."""


def get_images(
    images: Sequence[WantedImage], scratch: Path, limits: Limits | None = None
) -> list[Failure]:
    """Copy images, or download them within `limits`; returns the failures, in order.

    Files that exist stay. A file appears whole or not at all, and only if it is a readable image,
    so a rerun resumes; unfinished ones are in the folder `scratch`. Busy servers, broken
    connections and no network are passing failures. Shows a progress bar in a terminal.
    """
    make = _copy if limits is None else partial(_download, _pool(limits), limits)

    def get(image: WantedImage) -> Failure | None:
        if image.file.exists():
            return None
        new = scratch / uuid.uuid4().hex
        try:
            make(image.source, new)
            decode_rgb(new)
        except (HTTPError, _FailedError) as error:
            return Failure(image.item_id, image.source, _reason(error), _passes(error))
        except UnreadableImageError:
            new.unlink()
            return Failure(image.item_id, image.source, "not a readable image")
        image.file.parent.mkdir(parents=True, exist_ok=True)
        new.replace(image.file)
        return None

    console = console_on(sys.stderr)
    columns = TextColumn("images"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with (
        ThreadPoolExecutor(limits.connections if limits else _COPYING_THREADS) as threads,
        Progress(*columns, console=console, disable=not console.is_terminal) as progress,
    ):
        chunks = (images[at : at + _CHUNK] for at in range(0, len(images), _CHUNK))
        results = itertools.chain.from_iterable(threads.map(get, chunk) for chunk in chunks)
        return [one for one in progress.track(results, len(images)) if one is not None]


def _copy(source: str, new: Path) -> None:
    if not Path(source).is_file():
        raise _FailedError("missing")
    shutil.copyfile(source, new)


def _pool(limits: Limits) -> urllib3.PoolManager:
    return urllib3.PoolManager(
        num_pools=8,
        maxsize=limits.connections,
        block=True,
        timeout=Timeout(connect=limits.timeout, read=limits.timeout),
        headers={"User-Agent": "perpeft-ray"},
    )


def _download(pool: urllib3.PoolManager, limits: Limits, url: str, new: Path) -> None:
    retries = Retry(
        total=limits.attempts - 1,
        redirect=3,
        backoff_factor=limits.first_pause,
        backoff_jitter=limits.first_pause,
        status_forcelist=_BUSY,
    )
    while True:
        response = pool.request("GET", url, preload_content=False, retries=retries)
        try:
            new.write_bytes(_read(response, limits.max_bytes))
            return
        except HTTPError as error:
            # urllib3 retries if a connection breaks before the body, not within it.
            retries = (response.retries or retries).increment("GET", url, error=error)
        finally:
            # Close unless read to its end, so that no remainder reaches the next request.
            response.close()
        retries.sleep()


def _read(response: urllib3.BaseHTTPResponse, max_bytes: int) -> bytes:
    if response.status != 200:
        raise _FailedError(f"status {response.status}")
    body = response.read(max_bytes + 1, decode_content=True)
    while len(body) <= max_bytes and (more := response.read(max_bytes + 1 - len(body))):
        body += more
    if len(body) > max_bytes:
        raise _FailedError(f"larger than {max_bytes:,} bytes")
    if not body:
        raise _FailedError("empty")
    return body


def _passes(error: Exception) -> bool:
    """Whether a retry may succeed."""
    if isinstance(error, MaxRetryError):
        # urllib3 gives up on busy answers and on too many redirects.
        return "redirects" not in str(error.reason)
    return isinstance(error, HTTPError) and not isinstance(error, _FOR_GOOD)


def _reason(error: Exception) -> str:
    reason = getattr(error, "reason", None) or error
    return " ".join(str(reason).split())


def write_failures(folder: Path, failures: Iterable[Failure]) -> None:
    """Write `images_failed.csv` (item_id, image, reason, passing); no file without failures."""
    file = folder / FAILURES_FILE
    rows = [
        (one.item_id, one.image, one.reason, "yes" if one.passing else "no") for one in failures
    ]
    if not rows:
        file.unlink(missing_ok=True)
        return
    new = file.with_name(f".{file.name}.new")
    with new.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["item_id", "image", "reason", "passing"])
        writer.writerows(rows)
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
    if name in ("", ".", "..") or re.search("[/\\\\\0\ud800-\udfff]", name) or length > longest:
        raise InputError(f"{what} must be a plain file name, but is {name[:80]!r}")
