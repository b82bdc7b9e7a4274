"""Early stopping: ASHA among the trials of the same variant."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType, SimpleNamespace
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler

from perpeft_ray.config import StudyConfig
from perpeft_ray.store.record import Searched
from perpeft_ray.study.plan import TrialSpec
from perpeft_ray.study.trainable import OBJECTIVE, VALIDATED_STAGE3_EPOCHS

REDUCTION_FACTOR = 2
"""At each rung a trial has to reach the median of those before it; rungs double."""


class AshaWithinVariant(FIFOScheduler):
    """One ASHA for each variant of the search; other trials are never stopped.

    Every variant needs a best setting that was trained to its end: among all trials ASHA would
    drop a variant that learns slowly before its settings are told apart. The first trial of a
    variant at a rung always goes on. Only epochs of stage 3 count, since trials that differ in
    groups or conditioning weight share stage 1, and one that has had its last epoch is finished.

    `before`: trials of earlier runs of the study, by config hash; they count for later ones.
    """

    def __init__(self, study: StudyConfig, before: Mapping[str, Searched] = MappingProxyType({})):
        super().__init__()  # type: ignore[no-untyped-call]  # Ray leaves it untyped
        self._last_epoch = study.train.epochs + study.train.personal_epochs
        self._never_stop = FIFOScheduler()  # type: ignore[no-untyped-call]  # Ray leaves it untyped
        # ASHA wants its end after its first rung; with fewer epochs there is nothing to stop.
        self._of_variant = {
            variant: ASHAScheduler(
                time_attr=VALIDATED_STAGE3_EPOCHS,
                metric=OBJECTIVE,
                mode="max",
                grace_period=study.search.grace_epochs,
                max_t=max(study.train.personal_epochs, study.search.grace_epochs),
                reduction_factor=REDUCTION_FACTOR,
                stop_last_trials=False,
            )
            for variant in study.values("variant")
        }
        for trial in before.values():
            if trial.config.method == "perpeft" and trial.config.variant in self._of_variant:
                self._recall(trial)

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """A trial is about to run."""
        self._of(trial).on_trial_add(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """CONTINUE or STOP, as the variant's ASHA decides."""
        # A trial without epochs reports once, and none.
        if result.get("record/epoch", self._last_epoch) >= self._last_epoch:
            return self.CONTINUE
        return self._of(trial).on_trial_result(tune_controller, trial, result)

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        """Let ASHA remember a trial's last result."""
        self._of(trial).on_trial_complete(tune_controller, trial, result)

    def on_trial_remove(self, tune_controller: Any, trial: Trial) -> None:
        """Forget a trial that never ran."""
        self._of(trial).on_trial_remove(tune_controller, trial)

    def _recall(self, trial: Searched) -> None:
        assert trial.config.variant is not None
        asha = self._of_variant[trial.config.variant]
        known = SimpleNamespace(trial_id=trial.config.config_hash)  # all that ASHA reads of a trial
        asha.on_trial_add(None, known)  # type: ignore[arg-type]  # all that ASHA reads
        for epoch, score in trial.validated:
            stage3 = epoch - trial.config.stage1_epochs
            result = {VALIDATED_STAGE3_EPOCHS: stage3, OBJECTIVE: score}
            asha.on_trial_result(None, known, result)  # type: ignore[arg-type]  # all that ASHA reads

    def _of(self, trial: Trial) -> TrialScheduler:
        spec = TrialSpec.from_tune(trial.config)
        searched = spec.is_searched and spec.config.method == "perpeft"
        return self._of_variant[spec.config.variant] if searched else self._never_stop
