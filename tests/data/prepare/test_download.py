"""download_images against a server on this machine that misbehaves."""

from __future__ import annotations

import pytest

from perpeft_ray.data.prepare.download import Download, Limits, download_images
from perpeft_ray.data.prepare.images import Failure
from tests.data.prepare.conftest import jpeg

LIMITS = Limits(connections=4, attempts=3, first_pause=0.01, timeout=5, max_bytes=10_000)


def wanted(web, folder, *names: str) -> list[Download]:
    return [Download(name, f"{web.address}/{name}", folder / f"{name}.jpg") for name in names]


def nothing(_: int) -> None:
    pass


def test_files_are_the_servers(web, tmp_path):
    names = [f"i{number}" for number in range(40)]
    web.files = {f"/{name}": jpeg(number) for number, name in enumerate(names)}
    advanced: list[int] = []
    assert download_images(wanted(web, tmp_path, *names), LIMITS, advanced.append) == []
    assert sum(advanced) == 40
    for number, name in enumerate(names):
        assert (tmp_path / f"{name}.jpg").read_bytes() == jpeg(number)
    assert len(list(tmp_path.iterdir())) == 40  # no partial files


def test_concurrency_is_bounded_and_used(web, tmp_path):
    names = [f"i{number}" for number in range(24)]
    web.files = {f"/{name}": jpeg(1) for name in names}
    web.pause = 0.05
    download_images(wanted(web, tmp_path, *names), LIMITS, nothing)
    assert web.most_at_once == 4


def test_busy_servers_and_broken_connections_are_tried_again(web, tmp_path):
    web.files = {f"/{name}": jpeg(1) for name in ("busy", "limited", "cut")}
    web.statuses = {"/busy": [503, 500], "/limited": [429]}
    web.cut["/cut"] = 2
    assert download_images(wanted(web, tmp_path, "busy", "limited", "cut"), LIMITS, nothing) == []
    assert web.requests == {"/busy": 3, "/limited": 2, "/cut": 3}
    for name in ("busy", "limited", "cut"):
        assert (tmp_path / f"{name}.jpg").read_bytes() == jpeg(1)


def test_what_fails_is_told_in_order_and_leaves_no_file(web, tmp_path):
    web.files = {
        "/large": bytes(10_001),
        "/limit": bytes(10_000),
        "/down": jpeg(1),
        "/cut": jpeg(1),
        "/empty": b"",
    }
    web.statuses = {"/down": [503] * 9}
    web.cut["/cut"] = 9
    names = ("large", "gone", "limit", "down", "cut", "empty")
    downloads = wanted(web, tmp_path, *names)
    downloads += [
        Download("scheme", "file:///etc/hostname", tmp_path / "scheme.jpg"),
        Download("nonsense", "http://[", tmp_path / "nonsense.jpg"),
    ]
    failures = download_images(downloads, LIMITS, nothing)
    reasons = {failure.item_id: failure.reason for failure in failures}
    assert list(reasons) == ["large", "gone", "down", "cut", "empty", "scheme", "nonsense"]
    assert failures[1] == Failure("gone", f"{web.address}/gone", "status 404")
    assert reasons["large"] == "larger than 10,000 bytes"
    assert reasons["down"] == "too many 503 error responses"
    assert "IncompleteRead" in reasons["cut"]
    assert reasons["empty"] == "empty"
    assert web.requests["/gone"] == 1
    assert web.requests["/down"] == web.requests["/cut"] == 3
    assert [path.name for path in tmp_path.iterdir()] == ["limit.jpg"]


def test_a_server_that_is_not_there_is_a_failure(tmp_path):
    download = Download("a", "http://127.0.0.1:9/a.jpg", tmp_path / "a.jpg")
    (failure,) = download_images([download], LIMITS, nothing)
    assert "refused" in failure.reason


def test_what_is_there_is_not_fetched_again(web, tmp_path):
    web.files = {"/a": jpeg(1), "/b": jpeg(2)}
    (tmp_path / "a.jpg").write_bytes(b"from before")
    download_images(wanted(web, tmp_path, "a", "b"), LIMITS, nothing)
    assert web.requests == {"/b": 1}
    assert (tmp_path / "a.jpg").read_bytes() == b"from before"


@pytest.mark.parametrize("count", [0, 1])
def test_none_and_one(web, tmp_path, count):
    web.files = {"/a": jpeg(1)}
    assert download_images(wanted(web, tmp_path, "a")[:count], LIMITS, nothing) == []
    assert len(list(tmp_path.iterdir())) == count
