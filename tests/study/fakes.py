"""A study without training: a runner whose score is a known function of the configuration."""

from __future__ import annotations

import io
import os
import signal
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
import psutil
from optuna.trial import TrialState

from perpeft_ray.config import (
    SIMPLE_METHODS,
    Method,
    SearchSettings,
    StudyConfig,
    TrainSettings,
    TrialConfig,
)
from perpeft_ray.data.places import subfolder, write_file
from perpeft_ray.store.folder import StudyFolder
from perpeft_ray.study.plan import TrialSpec, all_settings, search_trial
from perpeft_ray.study.progress import Progress
from perpeft_ray.train.broker import MAX_LOSSES, Broker
from perpeft_ray.train.collective import Collective
from perpeft_ray.train.outcome import EpochRecord, TrialOutcome
from tests.records import metrics, outcome

if TYPE_CHECKING:
    from perpeft_ray.study.trainable import Study


def rows_of(study: Any) -> list[dict[str, Any]]:
    """The rows of a study by trial id, None for null, with the number of epochs of each."""
    trials = study.folder.trials().sort_values("trial_id")
    epochs = study.folder.epochs().groupby("trial_id").size()
    trials["epochs"] = [epochs.get(trial_id, 0) for trial_id in trials.trial_id]
    rows = trials.astype(object).where(trials.notna(), None).to_dict("records")
    return [
        {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in row.items()} for row in rows
    ]


Score = Callable[[TrialConfig], float]


def score_of(config: TrialConfig) -> float:
    """Highest for lora, rank 4, a weight of 0.6 and, by method, another learning rate."""
    score = {"lora": 0.3, "ia3": 0.2, "iisan": 0.1, None: 0.05}[config.variant]
    score += 0.02 if config.rank == 4 else 0.0
    score -= 0.05 * abs((config.conditioning_weight or 0.0) - 0.6)
    score += 0.001 * (config.groups or 0)
    best_rate = 1e-2 if config.method in ("perpeft", "frozen_mm") else 5e-3
    return score + (0.01 if config.learning_rate == best_rate else 0.0)


def fake_run(
    config: TrialConfig,
    workspace: object,
    report: Callable[[EpochRecord], None],
    *,
    test: bool,
    checkpoints: Path | str,
    score: Score = score_of,
    collective: Collective,
    **more: Any,
) -> TrialOutcome:
    """All epochs at once; validated as `validate_every` says, growing towards the score.

    The best of stage 3 starts anew, as in real trials. Its checkpoints are left.
    """
    write_file(subfolder(checkpoints, "key", "stage.safetensors"), b"")
    first, last = config.stage1_epochs, config.stage1_epochs + config.stage3_epochs
    if config.patience:  # stops one validation early
        last -= config.validate_every
    best = None
    for epoch in () if config.method in SIMPLE_METHODS else range(1, last + 1):
        stage = 1 if epoch <= first else 3
        if epoch == first + 1:
            best = None
        valid = None
        if (epoch - (0 if stage == 1 else first)) % config.validate_every == 0 or epoch == last:
            value = score(config) * (0.5 + 0.5 * epoch / last)
            valid, best = metrics(value), value
        report(EpochRecord(stage, epoch, 1.0 / epoch, 0.0, valid, best, stage == 1))
    return outcome(
        score(config),
        test=test,
        selected_epoch=last,
        still_improving=True,
        trainable_parameters=(config.rank or 1) * (config.groups or 1),
        world_size=collective.world_size,
    )


def small_study(**changes: Any) -> StudyConfig:
    """Small: 24 settings of lora, 8 of the others; 2 + 6 epochs.

    The first values are perpeft's best (`score_of`), so ASHA stops what is tried after them.
    """
    config = StudyConfig(
        train=TrainSettings(epochs=2, personal_epochs=6, validate_every=2),
        search=SearchSettings(
            trials=6,
            max_concurrent=1,
            ranks=(4, 2, 8),
            groups=(8, 4),
            conditioning_weights=(0.5, 1.0),
            learning_rates=(1e-2, 5e-3),
            grace_epochs=2,
        ),
    )
    return replace(config, **changes)


def fake_run_failing(
    config: TrialConfig,
    workspace: object,
    report: Callable[[EpochRecord], None],
    **more: Any,
) -> TrialOutcome:
    """Three ways to fail; 8 groups are tried first.

    The process of ia3 is killed, as by a system without memory; iisan cannot have its memory. The
    score of lora with 4 groups is not a number.
    """
    if config.variant == "ia3":
        os.kill(os.getpid(), signal.SIGKILL)
    if config.variant == "iisan":
        raise MemoryError("8 TB\nand here is more of it")
    diverges = config.variant == "lora" and config.groups == 4

    def score(config: TrialConfig) -> float:
        return float("nan") if diverges else score_of(config)

    return fake_run(config, workspace, report, score=score, **more)


class HastyBroker(Broker):
    """Counts each loss of workers as the last that a trial may have.

    Workers take seconds to start again; tests/train/test_broker.py has the number.
    """

    async def lost(self, slot: int, how: str, *, for_want_of_memory: bool) -> None:
        for _ in range(MAX_LOSSES + 1):
            await super().lost(slot, how, for_want_of_memory=for_want_of_memory)


def fake_run_killing_tune(
    config: TrialConfig,
    workspace: object,
    report: Callable[[EpochRecord], None],
    **more: Any,
) -> TrialOutcome:
    """While ia3 is searched the first time, the process of Tune that waits for it is killed."""
    if config.variant == "ia3" and not more["test"]:
        seen = Path(more["checkpoints"]).parents[1] / "killed"
        beside = psutil.Process().parent().children()
        waiting = [one for one in beside if "ImplicitFunc.train" in " ".join(one.cmdline())]
        if not seen.exists():
            seen.touch()
            for process in waiting:
                process.kill()
    return fake_run(config, workspace, report, **more)


def new_study(storage: Path, config: StudyConfig, run: Any = fake_run) -> Study:
    """A study in a fresh folder."""
    from perpeft_ray.study.trainable import Study

    config = replace(config, storage=str(storage))
    return Study(config=config, folder=StudyFolder.create(config), workspace=None, run=run)


def printed(run: Callable[[Study, Progress], None], study: Study) -> str:
    """Run a study's trials; what it printed."""
    out = io.StringIO()
    with Progress(out) as progress:
        run(study, progress)
    return out.getvalue()


def search_trials(study: StudyConfig, method: Method = "perpeft") -> list[TrialSpec]:
    """Every trial that the search of a method can choose from."""
    return [search_trial(study, method, setting) for setting in all_settings(study, method) or []]


def journal_of(folder: Path) -> optuna.Study:
    """PerPEFT's search in a study's folder, as Optuna reads it."""
    from perpeft_ray.study.search import open_journal

    storage = open_journal(folder / "optuna.journal")
    [name] = [n for n in optuna.get_all_study_names(storage) if n.endswith("-perpeft")]
    return optuna.load_study(study_name=name, storage=storage)


def states(folder: Path) -> Counter[TrialState]:
    """How many of PerPEFT's trials the journal has in each state."""
    return Counter(trial.state for trial in journal_of(folder).trials)
