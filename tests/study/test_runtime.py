"""Ray's checks before a study, its log, and errors and progress in one line."""

from __future__ import annotations

import io
import logging
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.exceptions import RayTaskError
from ray.train import WorkerGroupError

from perpeft_ray import screen
from perpeft_ray.config import StudyConfig, TrainSettings
from perpeft_ray.errors import InputError, StudyStoppedError
from perpeft_ray.study import runtime
from perpeft_ray.study.progress import Progress
from perpeft_ray.study.runtime import ray_for, ray_runtime, with_gpus
from perpeft_ray.study.watch import one_line
from perpeft_ray.train.outcome import EpochRecord
from tests.study.whole_space import search_trials


@pytest.mark.usefixtures("ray_runtime")
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"workers": 999}, "`workers` x `cpus_per_worker`"),
        ({"parallel_workers": 999}, "`parallel_workers` x `cpus_per_worker`"),
        ({"cpus_per_worker": 999, "parallel_workers": 0}, "`workers` x `cpus_per_worker`"),
        ({"gpus_per_worker": 999.0, "parallel_workers": 0}, "`workers` x `gpus_per_worker`"),
    ],
)
def test_more_workers_than_processors_are_told_at_once(
    tmp_path: Path, change: dict[str, float], words: str
) -> None:
    kind = "GPU" if "gpus_per_worker" in change else "CPU"
    there = ray.cluster_resources().get(kind, 0)
    with pytest.raises(InputError) as told, ray_for(replace(StudyConfig(), **change), tmp_path):
        pass
    assert str(told.value) == (
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


def test_a_machine_too_busy_for_ray_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_rays_token_is_its_owners_alone(tmp_path: Path) -> None:
    token = tmp_path / "auth_token"
    runtime.hide_token(token)  # none, no fault
    token.write_text("secret")
    token.chmod(0o644)
    runtime.hide_token(token)
    assert token.stat().st_mode & 0o777 == 0o600
    token.chmod(0o400)
    runtime.hide_token(token)
    assert token.stat().st_mode & 0o777 == 0o400


@pytest.mark.usefixtures("ray_runtime")
def test_logs_go_to_the_studys_file(
    tmp_path: Path, small_study: Callable[..., Any], capfd: pytest.CaptureFixture[str]
) -> None:
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
    assert one_line(WorkerGroupError("", {0: error})) == "ValueError: first line"
    assert one_line(MemoryError()) == "MemoryError"


def test_progress_is_plain_lines_where_there_is_no_terminal() -> None:
    out = io.StringIO()
    [spec, *_] = search_trials(StudyConfig(train=TrainSettings(lr=0.005)))
    with Progress(out, every=0.0) as progress:
        progress.plan(4, done=0, shown=("rank", "groups", "learning_rate"))
        progress.start(spec)
        progress.epoch(spec, EpochRecord(1, 1, 0.5, 1.0, None, None, False))
        progress.epoch(spec, EpochRecord(1, 2, 0.5, 1.0, None, 0.25, False))
        progress.tick()
        progress.finish(spec, "COMPLETE", score=0.25, seconds=2.0, error=None)
        progress.start(spec)
        progress.finish(spec, "FAIL", score=None, seconds=1.0, error="ValueError: [no] markup")
        time.sleep(0.01)
        progress.tick()
    status, complete, failed, last = out.getvalue().splitlines()
    assert status.startswith("0/4 trials, 1 running (epochs 2/24), best validation NDCG@20 25.00, ")
    assert status.endswith(" left")
    assert complete == (
        f"[1/4] COMPLETE {spec.trial_id}  G=6 r=4 lr=0.005  2.0 s  validation NDCG@20 25.00"
    )
    assert failed.endswith("1.0 s  ValueError: [no] markup")
    assert last.startswith("2/4 trials, 0 running, ")


def test_a_terminal_has_one_status_and_a_line_for_a_failed_trial(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(screen, "is_screen", lambda stream: True)
    out = io.StringIO()
    spec, other, *_ = search_trials(StudyConfig(train=TrainSettings(lr=0.005)))
    with Progress(out) as progress:
        progress.plan(4, done=0)
        progress.start(spec)
        progress.epoch(spec, EpochRecord(1, 2, 0.5, 1.0, None, 0.25, False))
        progress.tick()
        progress.finish(spec, "COMPLETE", score=0.25, seconds=2.0, error=None)
        progress.start(other)
        progress.finish(other, "FAIL", score=None, seconds=1.0, error="ValueError: no")
        progress.tick()
    assert spec.trial_id not in out.getvalue()
    assert f"FAIL     {other.trial_id}" in out.getvalue()
    assert "2/4 trials, 0 running, best validation NDCG@20 25.00" in out.getvalue()


def test_time_left_counts_what_this_run_has_done(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    [spec, *_] = search_trials(StudyConfig(train=TrainSettings(lr=0.005)))
    out = io.StringIO()
    progress = Progress(out, every=0.0)
    now += 50  # getting ready
    progress.plan(14, done=10)
    progress.start(spec)
    now += 60
    progress.finish(spec, "COMPLETE", score=0.1, seconds=60.0, error=None)
    progress.start(spec)
    now += 30
    progress.epoch(spec, EpochRecord(1, 12, 0.5, 1.0, None, 0.1, False))
    progress.tick()
    # One trial and a half in 90 s; two and a half are left.
    assert out.getvalue().splitlines()[-1] == (
        "11/14 trials, 1 running (epochs 12/24), best validation NDCG@20 10.00, "
        "2:20 elapsed, 2:30 left"
    )


@pytest.mark.parametrize("address", ["127.0.0.1:1", "127.0.0.1", "127.0.0.1:x"])
def test_a_cluster_that_does_not_answer_is_told_at_once(
    monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(InputError, match=f"`RAY_ADDRESS` .* {address} does not answer"):
        runtime._init()


@pytest.mark.parametrize(
    ("resources", "parameters", "gpus"),
    [({"CPU": 2.0}, 10**6, 0.0), ({"GPU": 1.0}, 10**6, 0.25), ({"GPU": 8.0}, 10**8, 1.0)],
)
def test_a_study_uses_the_gpus_that_ray_has(
    monkeypatch: pytest.MonkeyPatch, resources: dict[str, float], parameters: int, gpus: float
) -> None:
    monkeypatch.setattr(ray, "cluster_resources", lambda: resources)
    monkeypatch.setattr(runtime, "encoder_parameters", lambda encoder: parameters)
    assert with_gpus(StudyConfig()).gpus_per_worker == gpus
    assert with_gpus(StudyConfig(gpus_per_worker=0.0)).gpus_per_worker == 0.0
