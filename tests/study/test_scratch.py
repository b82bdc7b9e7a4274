"""Ray's folder: short enough for sockets, gone afterwards, also after a kill."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from perpeft_ray.errors import InputError
from perpeft_ray.study import runtime
from perpeft_ray.study.runtime import ray_folder, scratch_folder


@pytest.fixture(autouse=True)
def _no_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A short folder, unlike pytest's."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="t") as folder:
        yield Path(folder)


def _socket(folder: str) -> str:
    return f"{folder}/ray/session_2026-11-26_14-27-16_355094_4194304/sockets/plasma_store"


def test_a_long_tmpdir_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = tmp_path / ("a_name_of_a_scheduler" * 4)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    monkeypatch.setenv("TMPDIR", str(long))
    with ray_folder():
        assert os.environ["TMPDIR"] == os.environ["RAY_TMPDIR"]  # the dashboard has sockets there
        assert len(os.fsencode(_socket(os.environ["RAY_TMPDIR"]))) <= 103
    assert list(long.iterdir()) == []
    assert os.environ["TMPDIR"] == str(long)


def test_a_short_tmpdir_is_used_and_left_empty(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    with ray_folder():
        folder = Path(os.environ["RAY_TMPDIR"])
        assert folder.parent == temporary
        (folder / "ray").mkdir()
    assert list(temporary.iterdir()) == []
    assert "RAY_TMPDIR" not in os.environ


def test_what_a_killed_process_left_is_removed_and_what_is_used_stays(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    left = temporary / "perpeft-killed00"
    (left / "ray").mkdir(parents=True)
    (left / ".in-use").touch()
    (temporary / "perpeft-notours").mkdir()
    with ray_folder():
        used = Path(os.environ.pop("RAY_TMPDIR"))
        with ray_folder():
            assert used.is_dir()
            assert not left.exists()
        os.environ["RAY_TMPDIR"] = str(used)
    assert [path.name for path in temporary.iterdir()] == ["perpeft-notours"]


def test_what_a_killed_study_left_of_tune_is_removed(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    left = temporary / "perpeft-tune-killed00"
    left.mkdir()
    (left / ".in-use").touch()
    with scratch_folder("perpeft-tune-") as first, scratch_folder("perpeft-tune-") as second:
        assert sorted(temporary.iterdir()) == sorted([first, second])
    assert list(temporary.iterdir()) == []


def test_a_long_ray_tmpdir_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", "/tmp/" + "x" * 60)
    with pytest.raises(InputError, match="`RAY_TMPDIR` must be at most 35 bytes"), ray_folder():
        pass


def test_no_folder_at_all_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/" + "x" * 60)
    monkeypatch.setattr(runtime, "_SHORT_FOLDERS", ("/no/such",))
    with pytest.raises(InputError, match=r"at most 18 bytes .* /no/such can be"), ray_folder():
        pass
