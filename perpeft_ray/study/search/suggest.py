"""Suggestions: Optuna's sampler behind Tune, each setting once."""

from __future__ import annotations

import random
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from optuna.exceptions import ExperimentalWarning
from optuna.samplers import TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from ray.tune.result import DONE
from ray.tune.search.optuna import OptunaSearch

from perpeft_ray.config import StudyConfig, canonical_hash
from perpeft_ray.study.plan import search_trial, search_trials
from perpeft_ray.study.search.space import Setting, all_settings, suggest_setting
from perpeft_ray.study.trainable import OBJECTIVE

SIZE = "trainable_parameters"
"""Key of the second objective, a column of `trials/`."""


class Suggestions(OptunaSearch):
    """TPE over the study's space, kept in an Optuna journal.

    With `search.pareto` it has two objectives, accuracy and few trainable parameters. Differs from
    Tune's `OptunaSearch` in that a setting is suggested once (the space is finite and
    a trial is deterministic), every variant is tried before anything is tried twice, epochs
    without a validation are not reported, and a trial that ASHA stopped is PRUNED.

    `tried`: config hashes of settings that an earlier run of the study has finished; `sizes`: the
    trainable parameters of the search's finished trials, by config hash; `unfinished`: settings
    that an earlier run has not finished, which come first; `sampler`: Optuna's, as it left it.
    """

    def __init__(
        self,
        study: StudyConfig,
        journal: Path,
        tried: Collection[str],
        sizes: Callable[[], Mapping[str, int]],
        unfinished: Sequence[Setting] = (),
        sampler: TPESampler | None = None,
    ) -> None:
        pareto = study.search.pareto
        super().__init__(
            partial(suggest_setting, study),
            metric=[OBJECTIVE, SIZE] if pareto else OBJECTIVE,
            mode=["max", "min"] if pareto else "max",
            sampler=sampler or TPESampler(seed=study.search.seed),
            study_name=optuna_study_name(study),
            storage=open_journal(journal),
        )
        with warnings.catch_warnings():  # optuna-dashboard shows the names
            warnings.simplefilter("ignore", ExperimentalWarning)
            names = ["validation NDCG@20", "trainable parameters"]
            self._ot_study.set_metric_names(names if pareto else names[:1])  # type: ignore[attr-defined]  # set by Tune
        self._study = study
        settings = {search_trial(study, s).config.config_hash: s for s in all_settings(study)}
        self._untried = {key: s for key, s in settings.items() if key not in tried}
        self._tries = Counter(settings[key]["variant"] for key in tried if key in settings)
        self._sizes = sizes
        self._hashes: dict[str, str] = {}
        self._unfinished = list(unfinished)

    def suggest_setting(self, trial_id: str) -> Setting:
        """A setting that has not been tried, of the variant with the fewest tries.

        Raises RuntimeError where the space has no other.
        """
        if self._unfinished:
            return self._again(trial_id, self._unfinished.pop(0))
        if not self._untried:
            raise RuntimeError("every setting of the search space has been tried")
        left = {setting["variant"] for setting in self._untried.values()}
        variants = [variant for variant in self._study.values("variant") if variant in left]
        variant = min(variants, key=lambda variant: self._tries[variant])
        self._ot_study.enqueue_trial({"variant": variant})  # type: ignore[attr-defined]  # set by Tune
        setting = self.suggest(trial_id)
        if self._key(setting) not in self._untried:  # type: ignore[arg-type]  # never None here
            setting = self._another(trial_id, setting)  # type: ignore[arg-type]  # never None here
        self._note(trial_id, setting)  # type: ignore[arg-type]  # never None here
        return setting  # type: ignore[return-value]  # never None here

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Report the objective to Optuna, by the trial's epoch."""
        # Tune repeats the last result when the function has returned.
        if OBJECTIVE in result and not result.get(DONE):
            self._report(trial_id, result)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Tell Optuna how a trial ended: COMPLETE, PRUNED or FAIL."""
        last_epoch = self._study.train.epochs + self._study.train.personal_epochs
        if result is not None and result["record/epoch"] < last_epoch:
            self._report(trial_id, result)
            result = None  # without a result Optuna is told PRUNED, with what was reported last
        elif result is not None and self._study.search.pareto:
            result = {**result, SIZE: self._sizes()[self._hashes[trial_id]]}
        super().on_trial_complete(trial_id, result=result, error=error)

    def _report(self, trial_id: str, result: dict[str, Any]) -> None:
        if self._study.search.pareto:
            return  # Optuna takes no intermediate values of several objectives
        self._ot_trials[trial_id].report(result[OBJECTIVE], step=result["record/epoch"])

    def _another(self, trial_id: str, setting: Setting) -> Setting:
        """In the stead of a setting to which the sampler came back, another of its variant."""
        repeat = self._ot_trials.pop(trial_id)
        repeat.set_user_attr("repeats", self._key(setting))
        self._ot_study.tell(repeat, state=TrialState.FAIL)  # type: ignore[attr-defined]  # set by Tune
        others = [s for s in self._untried.values() if s["variant"] == setting["variant"]]
        # Drawn by how many have been suggested, so that it is the same in a search that goes on.
        draw = random.Random(f"{self._study.search.seed}-{self._tries.total()}")
        self._ot_study.enqueue_trial(draw.choice(others))  # type: ignore[attr-defined]  # set by Tune
        return self.suggest(trial_id)  # type: ignore[return-value]  # never None here

    def _again(self, trial_id: str, setting: Setting) -> Setting:
        self._ot_study.enqueue_trial(setting)  # type: ignore[attr-defined]  # set by Tune
        suggested = self.suggest(trial_id)
        self._note(trial_id, setting)
        return suggested  # type: ignore[return-value]  # never None here

    def _note(self, trial_id: str, setting: Setting) -> None:
        self._hashes[trial_id] = self._key(setting)
        del self._untried[self._hashes[trial_id]]
        self._tries[setting["variant"]] += 1
        spec = search_trial(self._study, setting)
        self._ot_trials[trial_id].set_user_attr("trial_id", spec.trial_id)

    def _key(self, setting: Setting) -> str:
        return search_trial(self._study, setting).config.config_hash


def open_journal(journal: Path) -> JournalStorage:
    """The Optuna storage of a study's journal file; also opens in optuna-dashboard."""
    return JournalStorage(JournalFileBackend(str(journal)))


def optuna_study_name(study: StudyConfig) -> str:
    """The study's name and a hash of its search: another space, fixed value or objective is another
    search."""
    hashes = sorted(spec.config.config_hash for spec in search_trials(study))
    search = canonical_hash([SIZE, *hashes] if study.search.pareto else hashes)
    return f"{study.study}-{search[:8]}"
