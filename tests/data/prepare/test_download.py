"""download_images against a server on this machine that misbehaves."""

from __future__ import annotations

import pytest

from perpeft_ray.data.prepare.download import Download, Limits, download_images
from perpeft_ray.data.prepare.images import Failure
from tests.data.prepare.conftest import jpeg

LIMITS = Limits(connections=4, attempts=3, first_pause=0.01, timeout=5, max_bytes=10_000)


def wanted(web, folder, *names: str) -> list[Download]:
    return [Download(name, f"{web.address}/{name}", folder / f"{name}.jpg") for name in names]


def fetch(downloads, folder, advance=lambda _: None) -> list[Failure]:
    scratch = folder.with_name(f"{folder.name}-scratch")
    scratch.mkdir()
    try:
        return download_images(downloads, LIMITS, scratch, advance)
    finally:
        scratch.rmdir()  # nothing is left in it


def test_files_are_the_servers(web, tmp_path):
    names = [f"i{number}" for number in range(40)]
    web.files = {f"/{name}": jpeg(number) for number, name in enumerate(names)}
    advanced: list[int] = []
    assert fetch(wanted(web, tmp_path, *names), tmp_path, advanced.append) == []
    assert sum(advanced) == 40
    for number, name in enumerate(names):
        assert (tmp_path / f"{name}.jpg").read_bytes() == jpeg(number)
    assert len(list(tmp_path.iterdir())) == 40  # no partial files


def test_concurrency_is_bounded_and_used(web, tmp_path):
    names = [f"i{number}" for number in range(24)]
    web.files = {f"/{name}": jpeg(1) for name in names}
    web.pause = 0.05
    fetch(wanted(web, tmp_path, *names), tmp_path)
    assert web.most_at_once == 4


def test_busy_servers_and_broken_connections_are_tried_again(web, tmp_path):
    web.files = {f"/{name}": jpeg(1) for name in ("busy", "limited", "cut")}
    web.statuses = {"/busy": [503, 500], "/limited": [429]}
    web.cut["/cut"] = 2
    assert fetch(wanted(web, tmp_path, "busy", "limited", "cut"), tmp_path) == []
    assert web.requests == {"/busy": 3, "/limited": 2, "/cut": 3}
    for name in ("busy", "limited", "cut"):
        assert (tmp_path / f"{name}.jpg").read_bytes() == jpeg(1)


def test_what_fails_is_told_in_order_and_leaves_no_file(web, tmp_path):
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
    names = ("large", "gone", "limit", "down", "cut", "empty", "page", "half")
    downloads = wanted(web, tmp_path, *names)
    downloads += [
        Download("scheme", "file:///etc/hostname", tmp_path / "scheme.jpg"),
        Download("nonsense", "http://[", tmp_path / "nonsense.jpg"),
    ]
    failures = fetch(downloads, tmp_path)
    reasons = {failure.item_id: failure.reason for failure in failures}
    assert list(reasons) == [
        download.item_id for download in downloads if download.item_id != "limit"
    ]
    assert failures[1] == Failure("gone", f"{web.address}/gone", "status 404")
    assert reasons["large"] == "larger than 10,000 bytes"
    assert reasons["down"] == "too many 503 error responses"
    assert "IncompleteRead" in reasons["cut"]
    assert reasons["empty"] == "empty"
    assert reasons["page"] == reasons["half"] == "not a readable image"
    assert {failure.item_id for failure in failures if failure.passing} == {"down", "cut"}
    assert web.requests["/gone"] == 1
    assert web.requests["/down"] == web.requests["/cut"] == 3
    assert [path.name for path in tmp_path.iterdir()] == ["limit.jpg"]


def test_a_server_that_is_not_there_is_a_failure(tmp_path):
    download = Download("a", "http://127.0.0.1:9/a.jpg", tmp_path / "a.jpg")
    (failure,) = fetch([download], tmp_path)
    assert "refused" in failure.reason
    assert failure.passing


@pytest.mark.parametrize(
    ("status", "passing"),
    [
        *((status, True) for status in (408, 429, 500, 599)),
        *((status, False) for status in (401, 404, 451)),
    ],
)
def test_which_answers_may_pass(web, tmp_path, status, passing):
    web.files = {"/a": jpeg(1)}
    web.statuses = {"/a": [status] * 9}
    (failure,) = fetch(wanted(web, tmp_path, "a"), tmp_path)
    assert failure.passing == passing
    assert web.requests["/a"] == (3 if passing else 1)


def test_a_host_without_address_may_pass(tmp_path):
    (failure,) = fetch([Download("a", "http://no.such.invalid/a", tmp_path / "a.jpg")], tmp_path)
    assert failure.passing


def test_what_is_there_is_not_fetched_again(web, tmp_path):
    web.files = {"/a": jpeg(1), "/b": jpeg(2)}
    (tmp_path / "a.jpg").write_bytes(b"from before")
    fetch(wanted(web, tmp_path, "a", "b"), tmp_path)
    assert web.requests == {"/b": 1}
    assert (tmp_path / "a.jpg").read_bytes() == b"from before"
