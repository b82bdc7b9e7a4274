"""What every test gets: no network, no needless compiling; and one Ray for those that ask."""

from __future__ import annotations

import functools
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from pathlib import Path
from typing import Any

import pytest

# Before anything imports torch or transformers. Two test processes share two cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.pop("COLUMNS", None)  # of the terminal that runs the tests, which wraps what is printed
# ranx would compile for 40 s to score ten users.
os.environ.setdefault("NUMBA_DISABLE_JIT", "1")

SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests with Ray run last; with `-n` one process begins with them, beside the others."""
    beside_others = hasattr(config, "workerinput")  # a worker of pytest-xdist
    items.sort(key=lambda item: _uses_ray(item.path) != beside_others)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """One process has all files with Ray; a file's tests stay together and share fixtures."""
    from xdist.scheduler import LoadScopeScheduling

    class OneRay(LoadScopeScheduling):  # type: ignore[misc]  # untyped there
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return "ray" if _uses_ray(config.rootpath / file) else file

    return OneRay(config, log)


@functools.cache
def _uses_ray(file: Path) -> bool:
    return re.search(r"\b(one_ray|ray_runtime)\b", file.read_text()) is not None


@pytest.fixture(scope="session")
def one_ray():
    """One Ray for all tests of the session, as the study starts it."""
    from perpeft_ray.study.runtime import ray_runtime

    with ray_runtime():
        yield


@pytest.fixture(scope="session")
def shared_data():
    """Folder of the real data sets beside the repository; skips the test where it is absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"no real data at {SHARED_DATA}")
    return SHARED_DATA


@pytest.fixture(scope="session")
def s3_server():
    """The address of an S3 server on this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            deadline = time.monotonic() + 120
            while True:
                try:
                    urllib.request.urlopen(url).close()
                    break
                except OSError:
                    assert server.poll() is None, "the S3 server did not start"
                    assert time.monotonic() < deadline, "the S3 server does not answer"
                    time.sleep(0.2)
            yield url
        finally:
            server.terminate()


@pytest.fixture
def s3(s3_server, monkeypatch):
    """The URI of a new bucket, which this process and those it starts can use."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    name = f"perpeft-{uuid.uuid4().hex}"
    request = urllib.request.Request(f"{s3_server}/{name}", method="PUT")
    urllib.request.urlopen(request).close()
    return f"s3://{name}"
