"""One process runs a study: a living owner is told, a dead one is in nobody's way."""

from __future__ import annotations

import json
import os
import platform
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from perpeft_ray.errors import InputError
from perpeft_ray.store import lease
from perpeft_ray.store.lease import others_own, owned

ROOT = Path(__file__).parents[2]
HOLD = """
import sys, time
from pathlib import Path
from perpeft_ray.store.lease import owned
with owned(Path(sys.argv[1]), print):
    print("mine", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def other(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that owns the folder."""
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "mine\n"
        yield process
        process.kill()


def silent(text: str) -> None:
    pytest.fail(f"nothing is to be said, but: {text}")


def leave(folder: Path, machine: str) -> Path:
    """What a dead owner on a machine leaves."""
    file = folder / "owner.json"
    left = {"host": "elsewhere", "pid": 7, "since": "2026-01-01T00:00:00+00:00"}
    file.write_text(json.dumps({**left, "machine": machine}))
    return file


def test_a_living_owner_is_told_with_its_host(tmp_path: Path, other: subprocess.Popen[str]) -> None:
    with pytest.raises(InputError) as told, owned(tmp_path, silent):
        pass
    assert others_own(tmp_path)
    assert others_own(tmp_path.parent)
    assert re.fullmatch(
        r"`study` must be run by one process at a time, but process "
        rf"{other.pid} on {platform.node()} has run it since \S+: {tmp_path}",
        str(told.value),
    )


def test_an_owner_that_was_killed_is_replaced_at_once(
    tmp_path: Path, other: subprocess.Popen[str]
) -> None:
    other.send_signal(signal.SIGKILL)
    other.wait()
    assert json.loads((tmp_path / "owner.json").read_text())["pid"] == other.pid
    with owned(tmp_path, silent):
        assert json.loads((tmp_path / "owner.json").read_text())["pid"] == os.getpid()
        assert not others_own(tmp_path)
    assert not (tmp_path / "owner.json").exists()
    with owned(tmp_path, silent):
        pass


def test_an_error_frees_the_study_too(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="broken"), owned(tmp_path / "new", silent):
        raise ValueError("broken")
    with owned(tmp_path / "new", silent):
        pass


def test_a_silent_owner_on_another_machine_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "SILENCE_S", 0.3)
    monkeypatch.setattr(lease, "BEAT_S", 0.05)
    leave(tmp_path, "another machine")
    said: list[str] = []
    began = time.monotonic()
    with owned(tmp_path, said.append):
        assert time.monotonic() - began >= 0.3
    assert len(said) == 1
    assert "process 7 on elsewhere" in said[0]


def test_one_that_gives_signs_of_life_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "SILENCE_S", 30.0)
    monkeypatch.setattr(lease, "BEAT_S", 0.05)
    file = leave(tmp_path, "another machine")
    ended = threading.Event()

    def live() -> None:
        while not ended.wait(0.02):
            os.utime(file)

    thread = threading.Thread(target=live)
    thread.start()
    try:
        with (
            pytest.raises(InputError, match="process 7 on elsewhere has run it since 2026-01-01"),
            owned(tmp_path, lambda _: None),
        ):
            pass
    finally:
        ended.set()
        thread.join()
    assert file.exists()  # it is not ours to remove


def test_an_owner_gives_signs_of_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "BEAT_S", 0.02)
    with owned(tmp_path, silent):
        file = tmp_path / "owner.json"
        before = file.stat().st_mtime_ns
        deadline = time.monotonic() + 30
        while file.stat().st_mtime_ns == before:
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(InputError, match="`storage` must be a folder that can be written"),
        owned(tmp_path / "file" / "study", silent),
    ):
        pass
