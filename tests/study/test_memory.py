"""A trial that Ray's memory monitor kills: a death to Tune, a FAIL row of the study."""

from __future__ import annotations

import os
import re
from pathlib import Path

import psutil
import pytest
from ray.exceptions import OutOfMemoryError, RayActorError

from perpeft_ray.study import tuning
from perpeft_ray.study.tuning import take_memory_kills_as_deaths
from tests.study.quick_study import rows_in, run_quick_study

KILLED = "Memory on the node (IP: 10.0.0.1) was 23.1GB used / 24.0GB limit"
ROOM = 3.5e9
"""Bytes above what is in use: Ray takes 1 GB of it, the trial 5 GB at most, so that others on the
machine may take or give back 2 GB meanwhile."""


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[Exception]:
    """What Tune's two methods get, once a kill is taken as a death."""
    given: list[Exception] = []

    class Manager:
        def _actor_start_failed(self, tracked_actor: object, exception: Exception) -> None:
            given.append(exception)

        def _actor_task_failed(self, tracked_actor_task: object, exception: Exception) -> None:
            given.append(exception)

    monkeypatch.setattr(tuning, "RayActorManager", Manager)
    take_memory_kills_as_deaths()
    wrapped = Manager._actor_task_failed
    take_memory_kills_as_deaths()
    assert Manager._actor_task_failed is wrapped
    error = OutOfMemoryError(f"{KILLED}\nRefer to the documentation")
    Manager()._actor_start_failed(tracked_actor=None, exception=error)
    Manager()._actor_task_failed(tracked_actor_task=None, exception=error)
    Manager()._actor_task_failed(tracked_actor_task=None, exception=ValueError("other"))
    return given


def test_tune_takes_a_memory_kill_as_a_death(given: list[Exception]) -> None:
    for error in given[:2]:
        assert isinstance(error, RayActorError)
        assert str(error) == KILLED


def test_tune_gets_other_errors_as_they_are(given: list[Exception]) -> None:
    assert repr(given[2]) == repr(ValueError("other"))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_killed_trial_is_a_row_and_the_same_command_repeats_it(
    tmp_path: Path,
) -> None:
    there = psutil.virtual_memory()
    if there.available < 2 * ROOM:
        pytest.skip("too little memory is free")
    threshold = (there.total - there.available + ROOM) / there.total
    # A trial needs all processors: the next one shows that those of the killed one are free again.
    eat = ("--eat", "search:3", "--cpus-per-worker", str(os.cpu_count()))
    ended = run_quick_study(tmp_path, *eat, RAY_memory_usage_threshold=f"{threshold:.4f}")
    # Ray may kill Ray Train's own process beside the trial's, and so end the study.
    stopped = ended.returncode == 1
    if stopped:
        assert "free memory, then rerun the same command to resume" in ended.stderr
    else:
        assert ended.returncode == 0, ended.stderr
    trials = rows_in(tmp_path)
    [killed] = trials[trials.status == "FAIL"].to_dict("records")
    assert re.match(r"MemoryError: .*[Mm]emory.* used / .* limit", killed["error"])
    assert killed["phase"] == "search"
    assert set(trials.status) <= {"COMPLETE", "PRUNED", "FAIL"}
    # Its process is gone: one that lives is given the next trials, and no other began after.
    runs = tmp_path / "runs"
    [eater] = [file.name.split("-")[1] for file in runs.glob("eats-*")]
    assert list(runs.glob(f"began-search-{killed['config_hash']}-{eater}-*"))
    assert len(list(runs.glob(f"began-*-{eater}-*"))) == 4
    if not stopped:
        assert (trials.started_at > killed["finished_at"]).sum() >= 6

    again = run_quick_study(tmp_path, *eat)
    assert again.returncode == 0, again.stderr
    assert f"continuing: {len(trials) - 1} of " in again.stderr
    trials = rows_in(tmp_path)
    assert set(trials.status) == {"COMPLETE", "PRUNED"}
