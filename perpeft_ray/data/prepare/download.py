"""Images from the web: some at a time, tried again, never larger than a limit, none twice."""

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
"""Images that are handed to the threads at a time: bounds memory, not concurrency."""

_BUSY = (408, 425, 429, *range(500, 600))
"""Answers that may be others the next time."""

_FOR_GOOD = (LocationValueError, URLSchemeUnknown, DecodeError)
"""What urllib3 raises where another attempt will not help."""


@dataclass(frozen=True)
class Download:
    """An image that should lie in a file."""

    item_id: str
    url: str
    file: Path


@dataclass(frozen=True)
class Limits:
    """What a download may take."""

    connections: int = 16
    """Images under way at once."""
    attempts: int = 5
    """Requests for one image, with twice the pause after each (or what Retry-After says)."""
    first_pause: float = 0.5
    """Seconds."""
    timeout: float = 30.0
    """Seconds to connect, and without a byte."""
    max_bytes: int = 20_000_000
    """Of one image; a larger one is a failure."""


def download_images(
    downloads: Iterable[Download], limits: Limits, scratch: Path, advance: Callable[[int], None]
) -> list[Failure]:
    """Fetch every image whose file is not there yet; what failed, in the given order.

    A file appears whole or not at all, and only if it is a readable image, so a stopped run goes
    on; in the folder `scratch` are those under way. Busy servers, broken connections and no network
    are failures that may pass. `advance` receives the number of images handled, found on disk or
    not.
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
    """An answer that another attempt will not change."""


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
            # urllib3 tries again when a connection breaks before the body, not within it.
            retries = (response.retries or retries).increment("GET", url, error=error)
        finally:
            # Closed unless read to its end, so that no remainder meets the next request.
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
    """Whether another attempt may have another end."""
    if isinstance(error, MaxRetryError):
        # Of answers, urllib3 gives up on busy ones and on too many redirects.
        return "redirects" not in str(error.reason)
    return isinstance(error, HTTPError) and not isinstance(error, _FOR_GOOD)


def _reason(error: Exception) -> str:
    reason = getattr(error, "reason", None) or error
    return " ".join(str(reason).split())
