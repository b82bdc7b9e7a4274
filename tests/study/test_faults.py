"""What goes wrong around a study: killed processes, full disks, no room on Ray."""

from __future__ import annotations

import errno
import io
import json
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import optuna
import pytest
import ray
from optuna.trial import TrialState
from ray.exceptions import RayTaskError

from perpeft_ray.config import SearchSettings, StudyConfig
from perpeft_ray.errors import StudyStoppedError, is_full_disk
from perpeft_ray.store.record import TrialRecord
from perpeft_ray.study.ablation import run_ablation
from perpeft_ray.study.progress import Progress
from perpeft_ray.study.room import wait_for_room
from perpeft_ray.study.run import stopping_on_full_disk
from perpeft_ray.study.search.suggest import open_journal, open_searches
from tests.study.conftest import rows_of

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def run(study: Any) -> str:
    out = io.StringIO()
    with Progress(out) as progress:
        run_ablation(study, progress)
    return out.getvalue()


def states(study: Any) -> set[TrialState]:
    storage = open_journal(study.folder.path / "optuna.journal")
    [name] = [n for n in optuna.get_all_study_names(storage) if n.endswith("-perpeft")]
    return {t.state for t in optuna.load_study(study_name=name, storage=storage).trials}


def few(config: StudyConfig) -> StudyConfig:
    """Three trials of the search, one of each variant, and three of the ablation."""
    search = SearchSettings(
        trials=3,
        max_concurrent=1,
        ranks=(2,),
        groups=(4,),
        conditioning_weights=(0.5, 1.0),
        learning_rates=(5e-3,),
    )
    return replace(config, methods=("perpeft",), search=search)


@pytest.mark.usefixtures("ray_runtime")
def test_trials_without_memory_are_rows_and_the_study_goes_on(
    make_study: Callable[..., Any], small_study: Callable[..., Any], run_out_of_memory: Any
) -> None:
    study = make_study(few(small_study()), run=run_out_of_memory)
    run(study)
    rows = {row["variant"]: row for row in rows_of(study) if row["phase"] == "search"}
    assert rows["lora"]["status"] == "COMPLETE"
    assert (rows["ia3"]["status"], rows["iisan"]["status"]) == ("FAIL", "FAIL")
    assert rows["ia3"]["error"].startswith("RuntimeError: workers were lost 3 times in epoch 1;")
    assert rows["iisan"]["error"] == "MemoryError: 8 TB"
    assert states(study) == {TrialState.COMPLETE, TrialState.FAIL}
    ablation = [row for row in rows_of(study) if row["phase"] == "ablation"]
    assert [(row["variant"], row["status"]) for row in ablation] == [("lora", "COMPLETE")]


@dataclass(frozen=True)
class FullAfter:
    """A study's folder on a disk that is full once it has so many rows."""

    inner: Any
    rows_that_fit: int

    def write_trial(self, record: TrialRecord) -> None:
        if len(self.inner.trials()) >= self.rows_that_fit:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "trials/x.parquet")
        self.inner.write_trial(record)

    def __getattr__(self, name: str) -> Any:
        if name == "inner":  # while it is unpickled
            raise AttributeError(name)
        return getattr(self.inner, name)


@pytest.mark.usefixtures("ray_runtime")
def test_a_full_disk_stops_the_study_which_resumes_once_there_is_room(
    make_study: Callable[..., Any], small_study: Callable[..., Any]
) -> None:
    study = make_study(few(small_study()))
    full = replace(study, folder=FullAfter(study.folder, 2))
    with (
        pytest.raises(StudyStoppedError, match=r"no room on the disk \(.* MB are left in .*same"),
        stopping_on_full_disk(study.folder.path),
    ):
        run(full)
    before = rows_of(study)
    assert [row["status"] for row in before] == ["COMPLETE"] * 2  # and no FAIL: it was no fault
    printed = run(study)
    assert TrialState.RUNNING not in states(study)
    assert "continuing: 2 of 6 trials are done" in printed
    assert len(rows_of(study)) == 6
    assert [row for row in rows_of(study) if row in before] == before


def test_a_full_disk_is_known_however_it_is_told(tmp_path: Path) -> None:
    assert is_full_disk(FULL)
    assert is_full_disk(OSError(errno.EDQUOT, "quota"))
    assert is_full_disk(RayTaskError("train", "a traceback", FULL))
    assert is_full_disk(RuntimeError("I/O error: No space left on device (os error 28)"))
    in_tune = RuntimeError("Tune's, with a traceback as its text")
    in_tune.__context__ = FULL
    assert is_full_disk(in_tune)
    assert not is_full_disk(OSError(errno.EACCES, "no"))
    assert not is_full_disk(MemoryError())
    with pytest.raises(ValueError, match="other"), stopping_on_full_disk(tmp_path / "none"):
        raise ValueError("other")


def test_a_line_that_a_full_disk_cut_short_does_not_spoil_the_journal(tmp_path: Path) -> None:
    study, journal = few(StudyConfig()), tmp_path / "journal"
    lost = open_searches(study, journal, {})["perpeft"].ask("a")
    journal.write_bytes(journal.read_bytes() + b'{"op_code":4,"worker')
    for _ in range(2):
        assert open_searches(study, journal, {})["perpeft"].ask("a") == lost
    assert all(json.loads(line) for line in journal.read_text().splitlines())


@pytest.mark.usefixtures("ray_runtime")
def test_what_a_cluster_has_no_room_for_is_told() -> None:
    config = StudyConfig(cpus_per_worker=2, start_timeout_s=1.0)
    began = time.monotonic()
    with pytest.raises(StudyStoppedError) as told:
        wait_for_room(config, 500)
    assert time.monotonic() - began < 30
    there = ray.cluster_resources()["CPU"]
    text = str(told.value)
    assert text.startswith("Ray has had no room for a trial for 1 s: it needs 500 x (2 CPU); the")
    assert f"the nodes have {there:g} CPU, of which {there:g} CPU are free" in text
    assert "`start_timeout_s`" in text
    wait_for_room(config, 1)


@pytest.mark.usefixtures("ray_runtime")
def test_processors_that_others_hold_end_the_wait_and_free_ones_let_it_go_on(
    make_study: Callable[..., Any], small_study: Callable[..., Any]
) -> None:
    @ray.remote(num_cpus=ray.cluster_resources()["CPU"])
    class Other:
        def here(self) -> bool:
            return True

    other = Other.remote()  # type: ignore[attr-defined]  # Ray adds it
    assert ray.get(other.here.remote())
    study = make_study(few(small_study(start_timeout_s=2.0)))
    began = time.monotonic()
    with pytest.raises(StudyStoppedError, match=r"it needs 1 CPU; .* of which 0 CPU are free"):
        run(study)
    assert time.monotonic() - began < 60  # 2 s, on a machine that may be busy
    assert rows_of(study) == []

    patient = replace(study, config=replace(study.config, start_timeout_s=300.0))
    timer = threading.Timer(3.0, lambda: ray.kill(other))
    timer.start()
    run(patient)
    timer.join()
    assert len(rows_of(study)) == 6
