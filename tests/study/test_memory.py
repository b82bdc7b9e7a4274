"""A trial that Ray's memory monitor kills: told to Tune as a death, a FAIL row of a study."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pandas as pd
import psutil
import pytest
from ray.air.execution import FixedResourceManager
from ray.air.execution._internal.actor_manager import RayActorManager
from ray.air.execution._internal.tracked_actor import TrackedActor
from ray.air.execution._internal.tracked_actor_task import TrackedActorTask
from ray.exceptions import OutOfMemoryError, RayActorError

from perpeft_ray.study import tuning
from perpeft_ray.study.tuning import take_memory_kills_as_deaths

SCRIPT = Path(__file__).with_name("quick_study.py")
KILLED = "Memory on the node (IP: 10.0.0.1) was 23.1GB used / 24.0GB limit"
ROOM = 3.5e9
"""Bytes above what is in use: Ray takes 1 GB of it, the trial 5 GB at most, so that others on the
machine may take or give back 2 GB meanwhile."""


class Manager(RayActorManager):
    """Tune's, with one actor that runs; `freed` is its room once that is given back."""

    def __init__(self) -> None:
        super().__init__(FixedResourceManager({}))
        self.freed = Mock()
        self._resource_manager.free_resources = self.freed
        self.told_of_actor, self.told_of_task = Mock(), Mock()
        self.actor = TrackedActor(1, on_error=self.told_of_actor)
        self.task = TrackedActorTask(self.actor, on_error=self.told_of_task)
        self._live_actors_to_ray_actors_resources[self.actor] = (Mock(), "its room")


@pytest.fixture(autouse=True)
def _twice() -> None:
    take_memory_kills_as_deaths()
    before = RayActorManager._actor_task_failed
    take_memory_kills_as_deaths()
    assert RayActorManager._actor_task_failed is before


def _is_the_death(call: Any, actor: TrackedActor) -> None:
    told_of, error = call.args
    assert told_of is actor
    assert isinstance(error, RayActorError)
    assert str(error) == KILLED


def test_a_kill_of_a_running_trial_is_its_death() -> None:
    manager = Manager()
    error = OutOfMemoryError(f"{KILLED}\nRefer to the documentation")
    manager._actor_task_failed(tracked_actor_task=manager.task, exception=error)
    _is_the_death(manager.told_of_actor.call_args, manager.actor)
    _is_the_death(manager.told_of_task.call_args, manager.actor)
    manager.freed.assert_called_once_with(acquired_resource="its room")
    assert manager.is_actor_failed(manager.actor)
    assert manager.live_actors == []


def test_a_kill_of_a_trial_that_starts_is_its_death() -> None:
    manager = Manager()
    manager._actor_start_failed(tracked_actor=manager.actor, exception=OutOfMemoryError(KILLED))
    _is_the_death(manager.told_of_actor.call_args, manager.actor)
    manager.freed.assert_called_once_with(acquired_resource="its room")


def test_what_else_tune_does_not_know_still_ends_it() -> None:
    manager = Manager()
    with pytest.raises(RuntimeError, match="Caught unexpected exception: other"):
        manager._actor_task_failed(tracked_actor_task=manager.task, exception=ValueError("other"))
    manager.told_of_task.assert_not_called()


def test_a_ray_without_these_methods_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "RayActorManager", object)
    with pytest.raises(AttributeError, match="_actor_start_failed"):
        take_memory_kills_as_deaths()


def run(storage: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    # A trial needs all processors: the next one shows that those of the killed one are free again.
    every = ["--cpus-per-worker", str(os.cpu_count())]
    return subprocess.run(
        [sys.executable, str(SCRIPT), str(storage), *arguments, *every],
        capture_output=True,
        text=True,
        check=False,
        timeout=400,
        env={**os.environ, **environment},
    )


def rows(storage: Path) -> pd.DataFrame:
    return pd.read_parquet(storage / "ablation_peft" / "trials")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_killed_trial_is_a_row_the_study_goes_on_and_so_does_the_same_command(
    tmp_path: Path,
) -> None:
    there = psutil.virtual_memory()
    if there.available < 2 * ROOM:
        pytest.skip("too little memory is free")
    threshold = (there.total - there.available + ROOM) / there.total
    eat = ("--eat", "search:3")
    ended = run(tmp_path, *eat, RAY_memory_usage_threshold=f"{threshold:.4f}")
    assert ended.returncode == 0, ended.stderr
    trials = rows(tmp_path)
    [killed] = trials[trials.status == "FAIL"].to_dict("records")
    assert re.match(r"MemoryError: .*[Mm]emory.* used / .* limit", killed["error"])
    assert killed["phase"] == "search"
    assert set(trials.status) == {"COMPLETE", "PRUNED", "FAIL"}
    assert (trials.started_at > killed["finished_at"]).sum() >= 6
    # Its process is gone: one that lives is given the next trials, and no other began after.
    runs = tmp_path / "runs"
    [eater] = [file.name.split("-")[1] for file in runs.glob("eats-*")]
    assert list(runs.glob(f"began-search-{killed['config_hash']}-{eater}-*"))
    assert len(list(runs.glob(f"began-*-{eater}-*"))) == 4

    again = run(tmp_path, *eat)
    assert again.returncode == 0, again.stderr
    assert f"continuing: {len(trials) - 1} of {len(trials)} trials are done" in again.stderr
    trials = rows(tmp_path)
    assert set(trials.status) == {"COMPLETE", "PRUNED"}
    assert not trials.duplicated(["phase", "config_hash"]).any()
