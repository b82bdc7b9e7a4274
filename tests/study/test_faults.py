"""What goes wrong around a study: trials that fail, killed processes, full disks."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState
from ray.exceptions import RayTaskError

from perpeft_ray.config import Method, SearchSettings
from perpeft_ray.errors import StudyStoppedError, is_full_disk
from perpeft_ray.store.lease import Lease
from perpeft_ray.store.record import TrialRecord
from perpeft_ray.study.questions import run_ablation
from perpeft_ray.study.run import stopping_on_full_disk
from perpeft_ray.study.tuning import OF_RAY_TRAIN
from tests.study.fakes import (
    HastyBroker,
    fake_run_failing,
    fake_run_killing_tune,
    new_study,
    printed,
    rows_of,
    small_study,
    states,
)
from tests.study.run_here import Ran, run_here

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


FEW = small_study(
    methods=("perpeft",),
    search=SearchSettings(
        trials=3,
        max_concurrent=1,
        ranks=(2,),
        groups=(4,),
        conditioning_weights=(0.5, 1.0),
        learning_rates=(5e-3,),
    ),
)
"""Three trials of the search, one of each variant, and three of the ablation."""


@pytest.mark.usefixtures("ray_runtime")
def test_failed_trials_are_rows_and_the_study_continues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("perpeft_ray.train.ray_train.Broker", HastyBroker)
    search = replace(FEW.search, trials=4, groups=(8, 4), conditioning_weights=(0.5,))
    methods: tuple[Method, ...] = ("popularity", "perpeft", "random_grouping")
    study = new_study(tmp_path, replace(FEW, methods=methods, search=search), fake_run_failing)
    ran = Ran(study)
    failed = {row["variant"]: row for row in ran.rows if row["status"] == "FAIL"}
    killed = failed["ia3"]["error"]
    assert killed.startswith("RuntimeError: workers were lost 3 times in epoch 1;")
    assert {variant: row["error"] for variant, row in failed.items()} == {
        "ia3": killed,
        "iisan": "MemoryError: 8 TB",
        "lora": "FloatingPointError: validation NDCG@20 is nan in epoch 2",
    }
    assert all(row["valid_ndcg_at_20"] is None for row in failed.values())
    assert set(states(study.folder.path)) == {TrialState.COMPLETE, TrialState.FAIL}
    # Variants that always fail are left out with a line; the other is compared.
    for variant in ("ia3", "iisan"):
        assert f"left out: perpeft {variant} has no finished trial" in ran.printed
    assert [(row["method"], row["variant"], row["groups"]) for row in ran.of("ablation")] == [
        ("perpeft", "lora", 8),
        ("popularity", None, None),
        ("random_grouping", "lora", 8),
    ]
    assert "Last result" not in capfd.readouterr().out  # Tune's own, for a trial without epochs


@pytest.mark.slow
@pytest.mark.usefixtures("ray_runtime")
def test_where_tunes_process_is_killed_the_trial_fails_and_a_rerun_repeats_it(
    tmp_path: Path,
) -> None:
    study = new_study(tmp_path, FEW, fake_run_killing_tune)
    printed(run_ablation, study)
    [lost] = [row for row in rows_of(study) if row["status"] == "FAIL"]
    assert (lost["variant"], lost["phase"]) == ("ia3", "search")
    assert lost["error"].startswith("ActorDiedError: ")
    assert states(study.folder.path) == {TrialState.COMPLETE: 2, TrialState.FAIL: 1}
    # The same workers have taken the other trials.
    assert {row["variant"] for row in rows_of(study) if row["phase"] == "ablation"} == {
        "lora",
        "iisan",
    }
    assert "continuing: 4 of 6 trials are done" in printed(run_ablation, study)
    assert {row["status"] for row in rows_of(study)} == {"COMPLETE"}
    assert len(rows_of(study)) == 6


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
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = new_study(tmp_path, FEW)
    full = replace(study, folder=FullAfter(study.folder, 2))
    with (
        pytest.raises(StudyStoppedError, match=r"no room on the disk \(.* MB are left in .*same"),
        stopping_on_full_disk(study.folder.path),
    ):
        printed(run_ablation, full)
    before = rows_of(study)
    assert [row["status"] for row in before] == ["COMPLETE"] * 2  # and no FAIL: it was no fault
    monkeypatch.setattr("perpeft_ray.study.questions.run_tune", run_here)
    assert "continuing: 2 of 6 trials are done" in printed(run_ablation, study)
    assert TrialState.RUNNING not in states(study.folder.path)
    assert len(rows_of(study)) == 6
    assert [row for row in rows_of(study) if row in before] == before


@pytest.mark.usefixtures("ray_runtime")
def test_a_study_that_another_process_took_over_stops(tmp_path: Path) -> None:
    study = new_study(tmp_path, FEW)
    theirs = Path(study.checkpoints, OF_RAY_TRAIN, "theirs")

    class TakenOver(Lease):
        def look(self) -> None:
            theirs.parent.mkdir(parents=True, exist_ok=True)
            theirs.touch()
            self.lost = True
            super().look()

    taken = replace(study, leases=(TakenOver(study.folder.path),))
    with pytest.raises(StudyStoppedError, match="another process has taken over the study in"):
        printed(run_ablation, taken)
    assert theirs.exists()


def test_a_full_disk_is_recognised_in_every_form(tmp_path: Path) -> None:
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
