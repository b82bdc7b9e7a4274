"""Only one process runs a study: a live holder is named, a dead one does not block."""

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
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from perpeft_ray.data.places import write_file
from perpeft_ray.errors import InputError, StudyStoppedError
from perpeft_ray.store import lease
from perpeft_ray.store.lease import Lease, leased, others_hold

ROOT = Path(__file__).parents[2]
HOLD = """
import sys, time
from pathlib import Path
from perpeft_ray.store.lease import leased
with leased(Path(sys.argv[1]), print):
    print("mine", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def other(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the folder."""
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "mine\n"
        yield process
        process.kill()


def silent(text: str) -> None:
    pytest.fail(f"should report nothing, but reports: {text}")


def leave(folder: Path, beat: int = 0, **changes: Any) -> Path:
    """What a holder on another machine has written."""
    holder = {"host": "elsewhere", "pid": 7, "since": "2026-01-01", "machine": "another"}
    folder.mkdir(exist_ok=True)
    new = folder / f".{beat}"
    new.write_text(json.dumps({**holder, "beat": str(beat), **changes}))
    return new.replace(folder / "owner.json")


@contextmanager
def living(folder: Path) -> Iterator[None]:
    """A holder on another machine that gives signs of life."""
    ended = threading.Event()

    def live() -> None:
        beat = 0
        while not ended.wait(0.02):
            leave(folder, beat := beat + 1)

    thread = threading.Thread(target=live)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def test_a_living_holder_is_named_with_its_host(
    tmp_path: Path, other: subprocess.Popen[str]
) -> None:
    with pytest.raises(InputError) as told, leased(tmp_path, silent):
        pass
    assert others_hold(tmp_path)
    assert others_hold(tmp_path.parent)
    assert re.fullmatch(
        r"`study` must be run by one process at a time, but process "
        rf"{other.pid} on {platform.node()} has run it since \S+: {tmp_path}",
        str(told.value),
    )


def test_a_holder_that_was_killed_is_replaced_at_once(
    tmp_path: Path, other: subprocess.Popen[str]
) -> None:
    other.send_signal(signal.SIGKILL)
    other.wait()
    assert json.loads((tmp_path / "owner.json").read_text())["pid"] == other.pid
    with leased(tmp_path, silent):
        assert json.loads((tmp_path / "owner.json").read_text())["pid"] == os.getpid()
        assert not others_hold(tmp_path)
    assert not (tmp_path / "owner.json").exists()
    with leased(tmp_path, silent):
        pass


@pytest.fixture
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "SETTLE_S", 0.0)
    monkeypatch.setattr(lease, "BEAT_S", 0.05)


@pytest.fixture(params=["folder", "URI"])
def place(request: pytest.FixtureRequest, tmp_path: Path, _quick: None) -> Path | str:
    """The study's folder in `tmp_path`, or its URI."""
    return tmp_path if request.param == "folder" else tmp_path.as_uri()


def test_a_silent_holder_on_another_machine_is_replaced(
    place: Path | str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "SILENCE_S", 0.3)
    leave(tmp_path)
    said: list[str] = []
    began = time.monotonic()
    with leased(place, said.append):
        assert time.monotonic() - began >= 0.3
    assert len(said) == 1
    assert "process 7 on elsewhere" in said[0]


def test_a_living_holder_on_another_machine_keeps_its_file(
    place: Path | str, tmp_path: Path
) -> None:
    leave(tmp_path)
    with (
        living(tmp_path),
        pytest.raises(InputError, match="process 7 on elsewhere has run it since 2026-01-01"),
        leased(place, lambda _: None),
    ):
        pass
    assert (tmp_path / "owner.json").exists()


def test_a_holder_gives_signs_of_life_and_leaves_no_file(place: Path | str, tmp_path: Path) -> None:
    file = tmp_path / "owner.json"
    with leased(place, silent):
        first = json.loads(file.read_text())
        assert (first["pid"], first["host"]) == (os.getpid(), platform.node())
        deadline = time.monotonic() + 30
        while json.loads(file.read_text())["beat"] == first["beat"]:
            assert time.monotonic() < deadline
            time.sleep(0.02)
    assert not file.exists()
    with pytest.raises(ValueError, match="broken"), leased(place, silent):
        raise ValueError("broken")
    assert not file.exists()


def lost(held: Lease) -> StudyStoppedError:
    """How a holder learns that another process has its study."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            held.look()
        except StudyStoppedError as stopped:
            return stopped
        time.sleep(0.02)
    pytest.fail("a holder should notice that it lost its study")


def test_a_holder_that_was_replaced_stops_and_leaves_the_others_file(
    place: Path | str, tmp_path: Path
) -> None:
    """As one that slept for longer than a silent holder is waited for."""
    with leased(place, silent) as held:
        held.look()
        leave(tmp_path)
        assert str(lost(held)) == (
            f"another process has taken over the study in {place} after 60 s without a sign of "
            "life from this one, or owner.json was removed; rerun the same command to resume once "
            "no other process runs the study"
        )
        assert json.loads((tmp_path / "owner.json").read_text())["pid"] == 7
    assert json.loads((tmp_path / "owner.json").read_text())["pid"] == 7


def test_a_holder_whose_study_was_deleted_stops_and_writes_nothing(
    place: Path | str, tmp_path: Path
) -> None:
    with leased(place, silent) as held:
        (tmp_path / "owner.json").unlink()
        assert lost(held)
    assert not (tmp_path / "owner.json").exists()


def test_a_lost_sign_of_life_is_followed_by_the_next(
    place: Path | str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stores of fsspec raise exceptions of their own, which are not OSErrors."""
    write, errors = write_file, [RuntimeError("try again"), OSError("no network")]
    with leased(place, silent) as held:

        def failing(file: Path | str, content: bytes) -> None:
            if errors:
                raise errors.pop()
            write(file, content)

        first = (tmp_path / "owner.json").read_text()
        monkeypatch.setattr(lease, "write_file", failing)
        deadline = time.monotonic() + 30
        while (tmp_path / "owner.json").read_text() == first:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        held.look()


def test_a_folder_that_cannot_be_made_is_the_systems_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(NotADirectoryError, match=str(tmp_path / "file")),
        leased(tmp_path / "file" / "study", silent),
    ):
        pass


def test_at_a_uri_the_later_of_two_simultaneous_starters_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "SETTLE_S", 0.5)
    other = threading.Timer(0.1, lambda: leave(tmp_path))
    other.start()
    with (
        pytest.raises(InputError, match="process 7 on elsewhere"),
        leased(tmp_path.as_uri(), silent),
    ):
        pass
    other.join()
    assert json.loads((tmp_path / "owner.json").read_text())["pid"] == 7


@pytest.mark.usefixtures("_quick")
def test_at_a_uri_an_ended_process_of_this_machine_is_replaced_at_once(tmp_path: Path) -> None:
    with leased(tmp_path.as_uri(), silent):
        me = json.loads((tmp_path / "owner.json").read_text())
    gone = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True
    )
    leave(tmp_path, host=me["host"], machine=me["machine"], pid=int(gone.stdout))
    with leased(tmp_path.as_uri(), silent):
        pass


def test_a_holder_file_of_another_version_holds_nothing(tmp_path: Path) -> None:
    (tmp_path / lease.HOLDER).write_text('{"host": "x", "pid": 1}')
    with leased(tmp_path, lambda _: None):
        assert json.loads((tmp_path / lease.HOLDER).read_text())["pid"] == os.getpid()
