"""Downloads images: several at a time, with retries, a size limit, and none twice."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import urllib3
from urllib3.exceptions import (
    DecodeError,
    HTTPError,
    LocationValueError,
    MaxRetryError,
    URLSchemeUnknown,
)
from urllib3.util import Retry, Timeout

from perpeft_ray.data.images import UnreadableImageError, decode_rgb
from perpeft_ray.data.prepare.images import Failure

CHUNK = 1024
"""Images handed to the threads at a time: bounds memory, not concurrency."""

_BUSY = (408, 425, 429, *range(500, 600))
"""HTTP statuses worth a retry."""

_FOR_GOOD = (LocationValueError, URLSchemeUnknown, DecodeError)
"""urllib3 errors that a retry does not fix."""


@dataclass(frozen=True)
class Download:
    """An image and its target file."""

    item_id: str
    url: str
    file: Path


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


def download_images(
    downloads: Iterable[Download], limits: Limits, scratch: Path, advance: Callable[[int], None]
) -> list[Failure]:
    """Fetch every image whose file is missing; returns the failures, in order.

    A file appears whole or not at all, and only if it is a readable image, so a rerun resumes;
    unfinished ones are in the folder `scratch`. Busy servers, broken connections and no network
    are passing failures. `advance` gets the number of images handled, also those found on disk.
    """
    failures: list[Failure] = []
    pool = urllib3.PoolManager(
        num_pools=8,
        maxsize=limits.connections,
        block=True,
        timeout=Timeout(connect=limits.timeout, read=limits.timeout),
        headers={"User-Agent": "perpeft-ray"},
    )

    def fetch(download: Download) -> Failure | None:
        if download.file.exists():
            return None
        new = scratch / uuid.uuid4().hex
        try:
            new.write_bytes(_body(pool, download.url, limits))
            decode_rgb(new)
        except (HTTPError, _RefusedError) as error:
            return Failure(download.item_id, download.url, _reason(error), _passes(error))
        except UnreadableImageError:
            new.unlink()
            return Failure(download.item_id, download.url, "not a readable image")
        new.replace(download.file)
        return None

    with pool, ThreadPoolExecutor(limits.connections) as threads:
        remaining = iter(downloads)
        while chunk := list(itertools.islice(remaining, CHUNK)):
            for failure in threads.map(fetch, chunk):
                advance(1)
                if failure is not None:
                    failures.append(failure)
    return failures


class _RefusedError(Exception):
    """An answer that a retry does not change."""


def _body(pool: urllib3.PoolManager, url: str, limits: Limits) -> bytes:
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
            return _read(response, limits.max_bytes)
        except HTTPError as error:
            # urllib3 retries if a connection breaks before the body, not within it.
            retries = (response.retries or retries).increment("GET", url, error=error)
        finally:
            # Close unless read to its end, so that no remainder reaches the next request.
            response.close()
        retries.sleep()


def _read(response: urllib3.BaseHTTPResponse, max_bytes: int) -> bytes:
    if response.status != 200:
        raise _RefusedError(f"status {response.status}")
    body = response.read(max_bytes + 1, decode_content=True)
    while len(body) <= max_bytes and (more := response.read(max_bytes + 1 - len(body))):
        body += more
    if len(body) > max_bytes:
        raise _RefusedError(f"larger than {max_bytes:,} bytes")
    if not body:
        raise _RefusedError("empty")
    return body


def _passes(error: HTTPError | _RefusedError) -> bool:
    """Whether a retry may succeed."""
    if isinstance(error, MaxRetryError):
        # urllib3 gives up on busy answers and on too many redirects.
        return "redirects" not in str(error.reason)
    return isinstance(error, HTTPError) and not isinstance(error, _FOR_GOOD)


def _reason(error: Exception) -> str:
    reason = getattr(error, "reason", None) or error
    return " ".join(str(reason).split())
