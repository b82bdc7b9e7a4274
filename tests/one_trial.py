"""A study's trial in this process, without Ray; its row is the study's."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from perpeft_ray.data.places import subfolder
from perpeft_ray.store.record import TrialRecord
from perpeft_ray.study.plan import TrialSpec
from perpeft_ray.study.trainable import Study, to_result
from perpeft_ray.train.collective import Alone
from perpeft_ray.train.outcome import EpochRecord


def run_spec(
    study: Study, spec: TrialSpec, report: Callable[[dict[str, Any]], None]
) -> TrialRecord:
    """Run a trial, report its epochs as Tune does, and write its COMPLETE row."""
    started_at = datetime.now(UTC)
    epochs: list[EpochRecord] = []

    def keep(record: EpochRecord) -> None:
        epochs.append(record)
        report(to_result(epochs))

    checkpoints = subfolder(study.checkpoints, spec.trial_id)
    outcome = study.run(
        spec.config,
        study.workspace,
        keep,
        test=spec.test,
        checkpoints=checkpoints,
        collective=Alone(),
    )
    name = study.config.study
    record = spec.record(name, "COMPLETE", epochs, started_at, outcome=outcome)
    study.folder.write_trial(record)
    return record
