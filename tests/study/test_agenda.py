"""What the agenda reports to Tune, without Ray."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from ray.tune.result import DONE

from perpeft_ray.metrics import RankingMetrics
from perpeft_ray.store.folder import StudyFolder
from perpeft_ray.study.agenda import Agenda
from perpeft_ray.study.search import open_searches
from perpeft_ray.study.trainable import to_result
from perpeft_ray.train.outcome import EpochRecord
from tests.study.fakes import small_study

VALID = RankingMetrics(*[0.1] * 6)


def validated(epoch: int, score: float) -> dict[str, Any]:
    return to_result([EpochRecord(3, epoch, 0.5, 1.0, VALID, score, False)])


def test_a_trial_that_falls_behind_its_variant_is_stopped_once(tmp_path: Path) -> None:
    study = small_study(methods=("perpeft",), storage=str(tmp_path))
    study = replace(study, search=replace(study.search, variants=("ia3",)))
    folder = StudyFolder.create(study)
    agenda = Agenda(folder, lambda _: [], open_searches(study, tmp_path / "journal", {}))
    for trial_id in ("first", "second"):
        assert isinstance(agenda.suggest(trial_id), dict)
    assert not agenda.stops("first", validated(4, 0.2))
    assert not agenda.stops("second", validated(3, 0.1))
    assert agenda.stops("second", validated(4, 0.1))
    assert not agenda.stops("second", validated(4, 0.1) | {DONE: True})  # Tune repeats it
