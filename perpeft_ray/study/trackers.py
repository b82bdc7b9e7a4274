"""Where a study can be watched besides its output: TensorBoard always, MLflow and W&B on demand.

MLflow is Ray's own callback. All take addresses, keys and modes from those tools' environment
variables.
"""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.logger import LoggerCallback

from perpeft_ray.config import StudyConfig
from perpeft_ray.study.plan import TrialSpec
from perpeft_ray.study.trainable import BEST_SO_FAR, from_result

TENSORBOARD = "tensorboard"


def trackers(config: StudyConfig, folder: Path) -> list[LoggerCallback]:
    """The trackers of a study whose folder this is, as callbacks of Tune.

    MLflow has an experiment of the study's name at `MLFLOW_TRACKING_URI`, or else in
    `<folder>/mlflow.db`; W&B has a project of that name, its files in `<folder>/wandb`.
    """
    chosen: list[LoggerCallback] = [TensorBoard(folder / TENSORBOARD)]
    if "mlflow" in config.log:
        from ray.air.integrations.mlflow import MLflowLoggerCallback

        uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{folder / 'mlflow.db'}"
        chosen.append(MLflowLoggerCallback(uri, experiment_name=config.study))
    if "wandb" in config.log:
        chosen.append(WandB(config.study, folder))
    return chosen


class TensorBoard(LoggerCallback):
    """Event files in `<folder>/<trial id>`; a trial that is run again replaces what it left.

    Ray's TBXLoggerCallback writes from a thread that a full disk ends; after ten more numbers the
    study would wait for it for ever. Here a full disk raises.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, Any] = {}

    def log_trial_start(self, trial: Trial) -> None:
        """Open the trial's file, and write its settings."""
        from tensorboardX import summary
        from tensorboardX.event_file_writer import EventsWriter

        spec = TrialSpec.from_tune(trial.config)
        folder = self._folder / spec.trial_id
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self._files[trial.trial_id] = EventsWriter(str(folder / "events"))
        settings = (f"| {name} | {value} |" for name, value in asdict(spec.config).items())
        table = "\n".join(["| setting | value |", "|---|---|", *settings])
        self._write(trial, summary.text("settings", table), 0)

    def log_trial_result(self, iteration: int, trial: Trial, result: dict[str, Any]) -> None:
        """Write an epoch's numbers."""
        from tensorboardX import summary

        if "record" not in result:
            return
        epoch, numbers = _numbers(result)
        for name, value in numbers.items():
            self._write(trial, summary.scalar(name, value), epoch)
        self._files[trial.trial_id].flush()

    def log_trial_end(self, trial: Trial, failed: bool = False) -> None:
        """Close the file; a trial that never started has none."""
        if trial.trial_id in self._files:
            self._files.pop(trial.trial_id).close()

    def _write(self, trial: Trial, summary: Any, step: int) -> None:
        from tensorboardX.proto.event_pb2 import Event

        event = Event(wall_time=time.time(), step=step, summary=summary)
        self._files[trial.trial_id].write_event(event)


class WandB(LoggerCallback):
    """Runs of the project that has the study's name; files in `<folder>/wandb`.

    Ray's WandbLoggerCallback would start two processes for every trial.
    """

    def __init__(self, study: str, folder: Path) -> None:
        self._study, self._folder = study, folder
        self._runs: dict[str, Any] = {}

    def log_trial_start(self, trial: Trial) -> None:
        """Start a run."""
        import wandb

        spec = TrialSpec.from_tune(trial.config)
        self._runs[trial.trial_id] = wandb.init(
            project=self._study,
            group=spec.phase,
            name=spec.trial_id,
            config=asdict(spec.config),
            dir=self._folder,
            reinit="create_new",  # trials run side by side
            settings=wandb.Settings(console="off", silent=True),
        )

    def log_trial_result(self, iteration: int, trial: Trial, result: dict[str, Any]) -> None:
        """Log an epoch's numbers."""
        if "record" in result:
            epoch, numbers = _numbers(result)
            self._runs[trial.trial_id].log(numbers, step=epoch)

    def log_trial_end(self, trial: Trial, failed: bool = False) -> None:
        """End the run; a trial that never started has none."""
        if trial.trial_id in self._runs:
            self._runs.pop(trial.trial_id).finish(exit_code=int(failed))


def _numbers(result: dict[str, Any]) -> tuple[int, dict[str, float]]:
    """The epoch that a trial reports, and what is shown of it."""
    record = from_result(result)
    numbers = {"loss": record.loss}
    if record.valid is not None:
        numbers |= {f"valid/{name}": value for name, value in asdict(record.valid).items()}
    if BEST_SO_FAR in result:
        numbers["valid/best_ndcg_at_20"] = result[BEST_SO_FAR]
    return record.epoch, numbers
