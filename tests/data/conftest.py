"""Makes small dataset folders; kills processes."""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from PIL import Image


def killed(work: Callable[[], None], reached: Callable[[], bool]) -> None:
    """Do work in another process, and kill it -9 as soon as `reached`."""
    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    deadline = time.monotonic() + 90
    while not reached():
        assert process.is_alive(), "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL


@pytest.fixture
def write_folder(tmp_path):
    """Writes a valid folder with the given columns replaced (or removed, where None)."""

    def write(
        interactions: dict[str, Any] | None = None, items: dict[str, Any] | None = None
    ) -> Path:
        folder = tmp_path / "shop"
        (folder / "images").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (6, 4), (200, 10, 30)).save(folder / "images" / "a.png")
        for name, columns, changes in (
            (
                "interactions",
                {"user_id": ["u", "u", "u"], "item_id": ["a", "b", "a"], "timestamp": [1, 2, 3]},
                interactions,
            ),
            (
                "items",
                {"item_id": ["a", "b"], "title": ["Ant", None], "image": ["images/a.png", None]},
                items,
            ),
        ):
            table = {k: v for k, v in {**columns, **(changes or {})}.items() if v is not None}
            pd.DataFrame(table).to_parquet(folder / f"{name}.parquet")
        return folder

    return write
