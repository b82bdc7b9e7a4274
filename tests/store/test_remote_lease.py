"""One process runs a study that is kept at a URI, whatever machine it is on."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from perpeft_ray.errors import InputError
from perpeft_ray.store import remote_lease
from perpeft_ray.store.lease import myself
from perpeft_ray.store.remote_lease import owned_at


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_lease, "SETTLE_S", 0.0)
    monkeypatch.setattr(remote_lease, "BEAT_S", 0.05)


def silent(text: str) -> None:
    pytest.fail(f"nothing is to be said, but: {text}")


def leave(folder: Path, beat: int = 0, **changes: Any) -> None:
    """What an owner on another machine has written."""
    owner = {"host": "elsewhere", "pid": 7, "since": "2026-01-01", "machine": "another"}
    folder.mkdir(exist_ok=True)
    new = folder / f".{beat}"
    new.write_text(json.dumps({**owner, "beat": str(beat), **changes}))
    new.replace(folder / "owner.json")


def test_it_gives_signs_of_life_and_leaves_nothing(tmp_path: Path) -> None:
    file = tmp_path / "study" / "owner.json"
    with owned_at(file.parent.as_uri(), silent):
        first = json.loads(file.read_text())
        assert (first["pid"], first["host"]) == (os.getpid(), platform.node())
        deadline = time.monotonic() + 30
        while json.loads(file.read_text())["beat"] == first["beat"]:
            assert time.monotonic() < deadline
            time.sleep(0.02)
    assert list(file.parent.iterdir()) == []
    with pytest.raises(ValueError, match="broken"), owned_at(file.parent.as_uri(), silent):
        raise ValueError("broken")
    assert not file.exists()


def test_a_silent_owner_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_lease, "SILENCE_S", 0.3)
    leave(tmp_path)
    said: list[str] = []
    began = time.monotonic()
    with owned_at(tmp_path.as_uri(), said.append):
        assert time.monotonic() - began >= 0.3
    assert len(said) == 1
    assert "process 7 on elsewhere" in said[0]


def test_a_living_owner_is_told_and_keeps_its_file(tmp_path: Path) -> None:
    leave(tmp_path)
    ended = threading.Event()

    def live() -> None:
        beat = 0
        while not ended.wait(0.02):
            leave(tmp_path, beat := beat + 1)

    thread = threading.Thread(target=live)
    thread.start()
    try:
        with (
            pytest.raises(InputError, match="process 7 on elsewhere has run it since 2026-01-01"),
            owned_at(tmp_path.as_uri(), lambda _: None),
        ):
            pass
    finally:
        ended.set()
        thread.join()
    assert (tmp_path / "owner.json").exists()


def test_of_two_that_start_at_once_the_later_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_lease, "SETTLE_S", 0.5)
    other = threading.Timer(0.1, lambda: leave(tmp_path))
    other.start()
    with (
        pytest.raises(InputError, match="process 7 on elsewhere"),
        owned_at(tmp_path.as_uri(), silent),
    ):
        pass
    other.join()
    assert json.loads((tmp_path / "owner.json").read_text())["pid"] == 7


def test_a_process_of_this_machine_that_is_gone_is_not_waited_for(tmp_path: Path) -> None:
    gone = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True
    )
    me = myself()
    leave(tmp_path, host=me.host, machine=me.machine, pid=int(gone.stdout))
    with owned_at(tmp_path.as_uri(), silent):
        pass
