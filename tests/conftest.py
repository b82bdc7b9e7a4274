"""What every test gets: no network, no needless compiling; and one Ray for those that ask."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

# Before anything imports torch or transformers.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# ranx would compile for 40 s to score ten users.
os.environ.setdefault("NUMBA_DISABLE_JIT", "1")

SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests with Ray run last, so that it runs for no other."""
    items.sort(key=lambda item: "one_ray" in getattr(item, "fixturenames", ()))


@pytest.fixture(scope="session")
def one_ray() -> Iterator[None]:
    """One Ray for all tests of the session, as the study starts it."""
    from perpeft_ray.study.host.runtime import ray_runtime

    with ray_runtime():
        yield


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the real data sets beside the repository; skips the test where it is absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"no real data at {SHARED_DATA}")
    return SHARED_DATA
