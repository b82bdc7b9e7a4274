"""Whole studies in this process: a stand-in for `run_tune`, without Ray."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from perpeft_ray.config import Method
from perpeft_ray.data.places import remove_folder, subfolder
from perpeft_ray.study.agenda import Agenda
from perpeft_ray.study.plan import TrialSpec
from perpeft_ray.study.progress import Progress
from perpeft_ray.study.questions import run_ablation
from perpeft_ray.study.trainable import Study, from_result
from perpeft_ray.train.outcome import EpochRecord
from tests.one_trial import run_spec
from tests.study.fakes import new_study, printed, rows_of, small_study


class _StoppedError(Exception):
    """The agenda stopped the trial."""


def run_here(study: Study, agenda: Agenda, progress: Progress, **more: object) -> None:
    """`run_tune` without Ray, Tune and failures: one trial after another, in this process.

    tests/study/test_tuning.py compares the two.
    """
    while isinstance(values := agenda.suggest("trial"), dict):
        spec, started_at = TrialSpec.from_tune(values), datetime.now(UTC)
        progress.start(spec)
        epochs: list[EpochRecord] = []

        def report(result: dict[str, Any], epochs: list[EpochRecord] = epochs) -> None:
            epochs.append(from_result(result))
            if agenda.stops("trial", result):
                raise _StoppedError

        try:
            record = run_spec(study, spec, report)
        except _StoppedError:
            record = spec.record(study.config.study, "PRUNED", epochs, started_at)
            study.folder.write_trial(record)
        remove_folder(subfolder(study.checkpoints, spec.trial_id))
        progress.finish(record)
        agenda.on_trial_complete("trial")


class Ran:
    """A study that has run."""

    freed: datetime | None = None
    """When it got processors that others had held."""

    def __init__(self, study: Study) -> None:
        self.study = study
        self.printed = printed(run_ablation, study)
        self.rows = rows_of(study)

    def of(self, phase: str, method: str | None = None) -> list[dict[str, Any]]:
        """The rows of a phase, and of a method unless None."""
        rows = [row for row in self.rows if row["phase"] == phase]
        return [row for row in rows if method in (None, row["method"])]


def whole_study(storage: Path) -> Study:
    """A method of each kind, with a search."""
    methods: tuple[Method, ...] = (
        "popularity",
        "without_mm",
        "global",
        "perpeft",
        "random_grouping",
    )
    return new_study(storage, small_study(methods=methods))
