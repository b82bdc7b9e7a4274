"""get_images against a server on this machine that misbehaves."""

from __future__ import annotations

import pytest

from perpeft_ray.data.prepare.images import Failure, Limits, WantedImage, get_images
from tests.data.prepare.conftest import jpeg

LIMITS = Limits(connections=4, attempts=3, first_pause=0.01, timeout=5, max_bytes=10_000)


@pytest.fixture
def fetch(web, tmp_path):
    """Download the images of these names, or at these addresses, to NAME.jpg."""

    def fetched(*names: str, **addresses: str) -> list[Failure]:
        addresses = {name: f"{web.address}/{name}" for name in names} | addresses
        wanted = [
            WantedImage(name, address, tmp_path / f"{name}.jpg")
            for name, address in addresses.items()
        ]
        scratch = tmp_path / "scratch"
        scratch.mkdir()
        try:
            return get_images(wanted, scratch, LIMITS)
        finally:
            scratch.rmdir()  # nothing is left in it

    return fetched


def test_files_are_those_of_the_server(web, fetch, tmp_path):
    names = [f"i{number}" for number in range(40)]
    web.files = {f"/{name}": jpeg(number) for number, name in enumerate(names)}
    assert fetch(*names) == []
    for number, name in enumerate(names):
        assert (tmp_path / f"{name}.jpg").read_bytes() == jpeg(number)


def test_uses_all_connections_and_no_more(web, fetch):
    names = [f"i{number}" for number in range(12)]
    web.files = {f"/{name}": jpeg(1) for name in names}
    web.pause = 0.3
    fetch(*names)
    assert web.most_at_once == LIMITS.connections


def test_retries_busy_servers_and_broken_connections(web, fetch, tmp_path):
    web.files = {f"/{name}": jpeg(1) for name in ("busy", "limited", "late", "cut")}
    web.statuses = {"/busy": [503, 599], "/limited": [429], "/late": [408]}
    web.cut["/cut"] = 2
    assert fetch("busy", "limited", "late", "cut") == []
    assert web.requests == {"/busy": 3, "/limited": 2, "/late": 2, "/cut": 3}
    assert (tmp_path / "cut.jpg").read_bytes() == jpeg(1)


FAILURES = {
    "large": ("larger than 10,000 bytes", False),
    "gone": ("status 404", False),
    "down": ("too many 503 error responses", True),
    "cut": ("IncompleteRead", True),
    "empty": ("empty", False),
    "page": ("not a readable image", False),
    "half": ("not a readable image", False),
    "scheme": ("No host specified", False),
    "nonsense": ("", False),
    "refused": ("refused", True),
    "unknown": ("Failed to resolve 'no.such.invalid'", True),
}


def test_failures_are_listed_in_order_and_leave_no_file(web, fetch, tmp_path):
    web.files = {
        "/large": bytes(10_001),
        "/limit": jpeg(2) + bytes(10_000 - len(jpeg(2))),
        "/page": b"<html>Sign in</html>",
        "/half": jpeg(1)[:200],
        "/down": jpeg(1),
        "/cut": jpeg(1),
        "/empty": b"",
    }
    web.statuses = {"/down": [503] * 9}
    web.cut["/cut"] = 9
    failures = fetch(
        *("large", "gone", "limit", "down", "cut", "empty", "page", "half"),
        scheme="file:///etc/hostname",
        nonsense="http://[",
        refused="http://127.0.0.1:9/a.jpg",
        unknown="http://no.such.invalid/a",
    )
    assert [failure.item_id for failure in failures] == list(FAILURES)
    for failure in failures:
        reason, passing = FAILURES[failure.item_id]
        assert reason in failure.reason
        assert failure.passing == passing, failure
    assert web.requests["/gone"] == 1
    assert web.requests["/down"] == web.requests["/cut"] == LIMITS.attempts
    assert [path.name for path in tmp_path.iterdir()] == ["limit.jpg"]
