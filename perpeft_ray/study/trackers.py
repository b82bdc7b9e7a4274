"""Where a study can be watched beside its output: TensorBoard always, MLflow and W&B on demand.

A trial's run has its id as name, its settings, and its epochs as steps; one that is run again
replaces what it left. Each tracker is that tool's own client; what it needs (addresses, keys,
offline mode) it takes from its own environment variables. Called in the study's main process.
"""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from perpeft_ray.config import StudyConfig
from perpeft_ray.errors import InputError
from perpeft_ray.store.record import Status
from perpeft_ray.study.plan import TrialSpec
from perpeft_ray.train.outcome import EpochRecord

TENSORBOARD = "tensorboard"


class Tracker(Protocol):
    """Hears of every trial: once `begin`, then `epoch`s, then `end`."""

    def begin(self, spec: TrialSpec) -> None:
        """A trial begins."""

    def epoch(self, spec: TrialSpec, record: EpochRecord) -> None:
        """It has had an epoch."""

    def end(self, spec: TrialSpec, status: Status) -> None:
        """It has ended."""


def check_trackers(config: StudyConfig) -> None:
    """Raise InputError where `log` names a tracker whose package is not installed."""
    for name in config.log:
        if find_spec(name) is None:
            raise InputError(
                f"`log` must name installed packages, but {name} is not: "
                f"pip install 'perpeft-ray[{name}]'"
            )


def trackers(config: StudyConfig, folder: Path) -> list[Tracker]:
    """The trackers of a study whose folder this is."""
    chosen: list[Tracker] = [TensorBoard(folder)]
    if "mlflow" in config.log:
        chosen.append(MLflow(config.study, folder))
    if "wandb" in config.log:
        chosen.append(WandB(config.study, folder))
    return chosen


class TensorBoard:
    """Event files in `<study folder>/tensorboard/<trial id>`.

    Written at once: tensorboardX's `SummaryWriter` has a thread, and where that meets a full disk
    the next call waits for ever.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder / TENSORBOARD
        self._files: dict[str, Any] = {}
        self._numbers = _Numbers()

    def begin(self, spec: TrialSpec) -> None:
        """Open the trial's file, and remove that of an earlier run."""
        from tensorboardX import summary
        from tensorboardX.event_file_writer import EventsWriter

        self._numbers.begin(spec)
        folder = self._folder / spec.trial_id
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self._files[spec.trial_id] = EventsWriter(str(folder / "events"))
        settings = (f"| {name} | {value} |" for name, value in asdict(spec.config).items())
        table = "\n".join(["| setting | value |", "|---|---|", *settings])
        self._write(spec, summary.text("settings", table), 0)

    def epoch(self, spec: TrialSpec, record: EpochRecord) -> None:
        """Write the epoch's numbers."""
        from tensorboardX import summary

        for name, value in self._numbers.of(spec, record):
            self._write(spec, summary.scalar(name, value), record.epoch)
        self._files[spec.trial_id].flush()

    def end(self, spec: TrialSpec, status: Status) -> None:
        """Close the file."""
        from tensorboardX import summary

        self._write(spec, summary.text("status", status), 0)
        self._files.pop(spec.trial_id).close()

    def _write(self, spec: TrialSpec, summary: Any, step: int) -> None:
        from tensorboardX.proto.event_pb2 import Event

        event = Event(wall_time=time.time(), step=step, summary=summary)
        self._files[spec.trial_id].write_event(event)


class MLflow:
    """Runs of the experiment that has the study's name.

    At `MLFLOW_TRACKING_URI`, or else in `<study folder>/mlflow.db`.
    """

    def __init__(self, study: str, folder: Path) -> None:
        from mlflow import MlflowClient

        uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{folder / 'mlflow.db'}"
        self._client = MlflowClient(uri)
        found = self._client.get_experiment_by_name(study)
        self._experiment = found.experiment_id if found else self._client.create_experiment(study)
        self._runs: dict[str, str] = {}
        self._numbers = _Numbers()

    def begin(self, spec: TrialSpec) -> None:
        """Start a run, and delete that of an earlier time."""
        self._numbers.begin(spec)
        name = f"attributes.run_name = '{spec.trial_id}'"
        for old in self._client.search_runs([self._experiment], name):
            self._client.delete_run(old.info.run_id)
        run = self._client.create_run(self._experiment, run_name=spec.trial_id).info.run_id
        for setting, value in {"phase": spec.phase, **asdict(spec.config)}.items():
            self._client.log_param(run, setting, value)
        self._runs[spec.trial_id] = run

    def epoch(self, spec: TrialSpec, record: EpochRecord) -> None:
        """Log the epoch's numbers."""
        for name, value in self._numbers.of(spec, record):
            self._client.log_metric(self._runs[spec.trial_id], name, value, step=record.epoch)

    def end(self, spec: TrialSpec, status: Status) -> None:
        """End the run."""
        of = {"COMPLETE": "FINISHED", "PRUNED": "KILLED", "FAIL": "FAILED"}
        self._client.set_terminated(self._runs.pop(spec.trial_id), of[status])


class WandB:
    """Runs of the project that has the study's name; files in `<study folder>/wandb`."""

    def __init__(self, study: str, folder: Path) -> None:
        self._study, self._folder = study, folder
        self._runs: dict[str, Any] = {}
        self._numbers = _Numbers()

    def begin(self, spec: TrialSpec) -> None:
        """Start a run."""
        import wandb

        self._numbers.begin(spec)
        self._runs[spec.trial_id] = wandb.init(
            project=self._study,
            group=spec.phase,
            name=spec.trial_id,
            config=asdict(spec.config),
            dir=self._folder,
            reinit="create_new",  # trials run side by side
            settings=wandb.Settings(console="off", silent=True),
        )

    def epoch(self, spec: TrialSpec, record: EpochRecord) -> None:
        """Log the epoch's numbers."""
        self._runs[spec.trial_id].log(dict(self._numbers.of(spec, record)), step=record.epoch)

    def end(self, spec: TrialSpec, status: Status) -> None:
        """End the run."""
        run = self._runs.pop(spec.trial_id)
        run.summary["status"] = status
        run.finish(exit_code=1 if status == "FAIL" else 0)


class _Numbers:
    """What trackers show of an epoch; the best so far is of the whole trial, and never falls.

    Stage 3 selects among its own epochs, so a record's best begins anew with it.
    """

    def __init__(self) -> None:
        self._best: dict[str, float] = {}

    def begin(self, spec: TrialSpec) -> None:
        """A trial begins."""
        self._best.pop(spec.trial_id, None)

    def of(self, spec: TrialSpec, record: EpochRecord) -> Iterator[tuple[str, float]]:
        """Names and values of an epoch."""
        yield "loss", record.loss
        if record.valid is not None:
            for name, value in asdict(record.valid).items():
                yield f"valid/{name}", value
        if record.best_valid_ndcg_at_20 is not None:
            best = max(record.best_valid_ndcg_at_20, self._best.get(spec.trial_id, -math.inf))
            self._best[spec.trial_id] = best
            yield "valid/best_ndcg_at_20", best
