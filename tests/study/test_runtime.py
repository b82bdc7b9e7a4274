"""Ray during a study: its checks, its log, its folder, and errors in one line."""

from __future__ import annotations

import logging
import os
import signal
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.exceptions import RayTaskError

from perpeft_ray.config import StudyConfig
from perpeft_ray.errors import InputError, StudyStoppedError
from perpeft_ray.study import room, runtime
from perpeft_ray.study.room import with_gpus
from perpeft_ray.study.runtime import ray_folder, ray_for, ray_runtime
from perpeft_ray.study.tuning import one_line
from tests.study.fakes import small_study


@pytest.mark.usefixtures("ray_runtime")
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"workers": 999}, "`workers` x `cpus_per_worker`"),
        ({"cpus_per_worker": 999}, "`workers` x `cpus_per_worker`"),
        ({"gpus_per_worker": 999.0}, "`workers` x `gpus_per_worker`"),
    ],
)
def test_more_workers_than_processors_are_refused_at_once(
    tmp_path: Path, change: dict[str, float], words: str
) -> None:
    kind = "GPU" if "gpus_per_worker" in change else "CPU"
    there = ray.cluster_resources().get(kind, 0)
    with pytest.raises(InputError) as error, ray_for(replace(StudyConfig(), **change), tmp_path):
        pass
    assert str(error.value) == (
        f"{words} must be at most the {kind}s that Ray has ({there:g}), but is 999"
    )
    assert ray.is_initialized()  # it was there before


def test_what_ray_prints_below_python_at_its_start_goes_to_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(runtime, "_init", lambda: os.write(2, b"from C++"))
    with ray_runtime(tmp_path / "log.txt"):
        os.write(2, b"after it")
    assert capfd.readouterr().err == "after it"
    assert (tmp_path / "log.txt").read_text() == "from C++"


def test_sigterm_keeps_its_handler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(runtime, "_init", lambda: signal.signal(signal.SIGTERM, signal.SIG_IGN))
    before = signal.getsignal(signal.SIGTERM)
    with ray_runtime():
        assert signal.getsignal(signal.SIGTERM) == before


def test_a_machine_too_busy_for_ray_is_reported_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said = ""

    def init(**_: object) -> None:
        raise Exception(said)  # noqa: TRY002 - as Ray does

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(ray, "init", init)
    said = "The current node timed out during startup. This could happen because"
    with pytest.raises(StudyStoppedError, match="run the same command again"), ray_runtime():
        pass
    said = "something else"
    with pytest.raises(Exception, match="something else"), ray_runtime():
        pass


@pytest.mark.parametrize(("before", "after"), [(0o644, 0o600), (0o400, 0o400)])
def test_only_the_owner_can_read_rays_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: int, after: int
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    runtime.hide_token()  # none, no fault
    token = tmp_path / ".ray" / "auth_token"
    token.parent.mkdir()
    token.touch(before)
    token.chmod(before)
    runtime.hide_token()
    assert token.stat().st_mode & 0o777 == after


@pytest.mark.usefixtures("ray_runtime")
def test_logs_go_to_the_studys_file(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "study.log"
    with ray_for(small_study(), file):
        assert not file.exists()
        logging.getLogger("ray.tune.anything").error("a traceback")
    assert "ERROR ray.tune.anything: a traceback" in file.read_text()
    assert "a traceback" not in "".join(capfd.readouterr())


def test_errors_in_one_line_without_rays_wrapping() -> None:
    error = ValueError("first line\nsecond line")
    wrapped = RayTaskError("train", "a traceback", error)
    assert one_line(error) == one_line(wrapped) == "ValueError: first line"
    assert one_line(MemoryError()) == "MemoryError"


@pytest.mark.parametrize("address", ["127.0.0.1:1", "127.0.0.1", "127.0.0.1:x"])
def test_a_cluster_that_does_not_answer_is_reported_at_once(
    monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(InputError, match=f"`RAY_ADDRESS` .* {address} does not answer"):
        runtime._init()


def test_a_joined_cluster_gets_the_users_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    said: dict[str, Any] = {}
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(ray, "init", lambda **options: said.update(options))
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    monkeypatch.setenv("PERPEFT_FAST", "0")
    monkeypatch.setenv("MALLOC_TOP_PAD_", "12345")
    monkeypatch.delenv("TUNE_DISABLE_SIGINT_HANDLER", raising=False)
    with ray_runtime():
        sent = said["runtime_env"]["env_vars"]
    assert (sent["PERPEFT_FAST"], sent["MALLOC_TOP_PAD_"]) == ("0", "12345")
    assert sent["TUNE_DISABLE_SIGINT_HANDLER"] == "1"


@pytest.mark.parametrize(
    ("resources", "parameters", "gpus"),
    [({"CPU": 2.0}, 10**6, 0.0), ({"GPU": 1.0}, 10**6, 0.25), ({"GPU": 8.0}, 10**8, 1.0)],
)
def test_a_study_uses_the_gpus_that_ray_has(
    monkeypatch: pytest.MonkeyPatch, resources: dict[str, float], parameters: int, gpus: float
) -> None:
    monkeypatch.setattr(ray, "cluster_resources", lambda: resources)
    monkeypatch.setattr(room, "encoder_parameters", lambda encoder: parameters)
    assert with_gpus(StudyConfig()).gpus_per_worker == gpus
    assert with_gpus(StudyConfig(gpus_per_worker=0.0)).gpus_per_worker == 0.0


@pytest.fixture
def _no_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)


@pytest.fixture
def temporary(_no_variable: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of temporary files, short unlike pytest's."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="t") as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield Path(folder)


def _socket(folder: str) -> str:
    return f"{folder}/ray/session_2026-11-26_14-27-16_355094_4194304/sockets/plasma_store"


@pytest.mark.usefixtures("_no_variable")
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


def test_a_short_tmpdir_is_used_and_left_empty(temporary: Path) -> None:
    with ray_folder():
        folder = Path(os.environ["RAY_TMPDIR"])
        assert folder.parent == temporary
        (folder / "ray").mkdir()
    assert list(temporary.iterdir()) == []
    assert "RAY_TMPDIR" not in os.environ


def test_what_a_killed_process_left_is_removed_and_what_is_used_stays(temporary: Path) -> None:
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


def test_a_long_ray_tmpdir_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", "/tmp/" + "x" * 60)
    with pytest.raises(InputError, match="`RAY_TMPDIR` must be at most 35 bytes"), ray_folder():
        pass


@pytest.mark.usefixtures("_no_variable")
def test_without_a_short_folder_the_study_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/" + "x" * 60)
    monkeypatch.setattr(runtime, "_SHORT_FOLDERS", ("/no/such",))
    with pytest.raises(InputError, match=r"at most 18 bytes .* /no/such can be"), ray_folder():
        pass
