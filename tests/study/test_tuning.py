"""A study under Ray and Tune, with a runner that does not train: against the stand-in, and room."""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import ray

from perpeft_ray.errors import StudyStoppedError
from perpeft_ray.study import room
from perpeft_ray.study.questions import run_ablation
from tests.study.fakes import (
    new_study,
    printed,
    rows_of,
    small_study,
    states,
)
from tests.study.run_here import Ran, run_here, whole_study

pytestmark = pytest.mark.usefixtures("ray_runtime")


def take_all_processors() -> Any:
    """An actor that holds every CPU of Ray until it is killed."""

    @ray.remote(num_cpus=ray.cluster_resources()["CPU"])
    class Other:
        def here(self) -> bool:
            return True

    other = Other.remote()  # type: ignore[attr-defined]  # Ray adds it
    ray.get(other.here.remote())
    return other


@pytest.fixture(scope="module")
def ran(ray_runtime: None, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """It begins while others hold the processors, and waits until they are free."""
    other = take_all_processors()
    freed: list[datetime] = []

    def free() -> None:
        while not room._waiting():
            time.sleep(0.1)
        freed.append(datetime.now(UTC))
        ray.kill(other)

    freeing = threading.Thread(target=free, daemon=True)
    freeing.start()
    ran = Ran(whole_study(tmp_path_factory.mktemp("tuning")))
    assert not freeing.is_alive()
    ran.freed = freed[0]
    return ran


def test_rows_and_journal_are_those_of_the_stand_in(
    ran: Ran, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("perpeft_ray.study.questions.run_tune", run_here)
    here = Ran(whole_study(tmp_path))

    def timeless(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{k: v for k, v in row.items() if not k.endswith("ed_at")} for row in rows]

    assert timeless(ran.rows) == timeless(here.rows)
    assert states(ran.study.folder.path) == states(here.study.folder.path)


def test_the_wait_for_workers_is_no_trials_time(ran: Ran) -> None:
    """Tune starts the first trial before there is room for its workers."""
    assert ran.freed is not None
    assert min(row["started_at"] for row in ran.rows) > ran.freed
    assert any(row["status"] == "PRUNED" for row in ran.rows)  # their rows are written elsewhere


def test_no_checkpoint_is_left(ran: Ran) -> None:
    assert list(Path(ran.study.checkpoints).iterdir()) == []


def test_every_trial_has_a_line_and_is_counted(ran: Ran) -> None:
    assert ran.printed.count("COMPLETE") + ran.printed.count("PRUNED") == len(ran.rows)
    assert f"[{len(ran.rows)}/{len(ran.rows)}]" in ran.printed


def test_every_trial_of_a_study_is_in_tensorboard(ran: Ran) -> None:
    folders = {folder.name for folder in (ran.study.folder.path / "tensorboard").iterdir()}
    assert folders == {row["trial_id"] for row in ran.rows}


def test_the_same_command_again_finds_nothing_to_do(ran: Ran) -> None:
    assert "COMPLETE" not in printed(run_ablation, ran.study)
    assert rows_of(ran.study) == ran.rows


def test_a_study_stops_where_others_hold_the_processors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last test here: its workers start once there is room, and take a processor to end."""
    monkeypatch.setattr("perpeft_ray.train.ray_train._END_S", 200.0)  # not for those workers
    other = take_all_processors()
    study = new_study(tmp_path, small_study(methods=("popularity",), start_timeout_s=2.0))
    began = time.monotonic()
    with pytest.raises(StudyStoppedError, match=r"it needs 1 CPU; .* of which 0 CPU are free"):
        printed(run_ablation, study)
    assert time.monotonic() - began < 100  # 2 s, on a machine that may be busy
    assert rows_of(study) == []
    ray.kill(other)
