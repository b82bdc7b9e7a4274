"""The search of one method's settings by Optuna's ask and tell, stored in the study's journal."""

from __future__ import annotations

import random
import warnings
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from perpeft_ray.config import Method, StudyConfig, Variant, canonical_hash
from perpeft_ray.store.record import Searched, Status
from perpeft_ray.study.plan import TrialSpec, search_budget, search_trial
from perpeft_ray.study.search.space import (
    Setting,
    all_settings,
    first_setting,
    suggest_setting,
    variants_of,
)

SCORE, SIZE = "validation NDCG@20", "trainable parameters"
"""Names of the objectives in the journal."""
START = 2
"""Trials after which TPE models the scores; `benchmarks/search_regret.py` compares samplers."""


class Search:
    """Chooses the next settings of a method.

    The first trial of each variant takes the first value of every setting; then Optuna's sampler
    suggests. Variants take turns, and no setting comes twice: a trial is deterministic. With
    `search.pareto` there are two objectives, accuracy and few trainable parameters.

    `ended`: the method's trials with a COMPLETE or PRUNED row, by config hash. Settings that were
    suggested before and have no row come first.
    """

    def __init__(
        self,
        study: StudyConfig,
        method: Method,
        journal: Path,
        ended: Mapping[str, Searched],
    ) -> None:
        self._study, self._method = study, method
        pareto = study.search.pareto
        optuna.logging.set_verbosity(optuna.logging.WARNING)  # trials have their own lines
        self._optuna = optuna.create_study(
            storage=open_journal(journal),
            study_name=optuna_study_name(study, method),
            directions=["maximize", "minimize"] if pareto else ["maximize"],
            load_if_exists=True,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            self._optuna.set_metric_names([SCORE, SIZE] if pareto else [SCORE])
        asked: dict[str, Setting] = {}
        for trial in self._optuna.get_trials(deepcopy=False):
            setting = setting_of(study, method, trial)
            if setting is not None:
                asked[self._spec(setting).config.config_hash] = setting
        self._unfinished = [setting for key, setting in asked.items() if key not in ended]
        self._tried = {key: row.config.variant for key, row in ended.items()}
        self._running: dict[str, optuna.Trial] = {}
        self._budget = search_budget(study, method)

    @property
    def left(self) -> int:
        """Number of remaining trials."""
        return max(0, self._budget - len(self._tried))

    def ask(self, trial_id: str) -> TrialSpec:
        """The next trial, under Tune's name `trial_id`."""
        trial, setting = self._next()
        spec = self._spec(setting)
        trial.set_user_attr("trial_id", spec.trial_id)
        self._running[trial_id] = trial
        self._tried[spec.config.config_hash] = setting["variant"]
        return spec

    def report(self, trial_id: str, epoch: int, score: float) -> None:
        """Report a running trial's validation: the best score so far."""
        if not self._study.search.pareto:  # Optuna takes no reports of two objectives
            self._running[trial_id].report(score, step=epoch)

    def tell(
        self, trial_id: str, status: Status, score: float | None = None, size: int | None = None
    ) -> None:
        """Report a trial's end; a COMPLETE one's score, and its size in `search.pareto`.

        Optuna gives a PRUNED trial its last reported value.
        """
        trial = self._running.pop(trial_id)
        if status != "COMPLETE":
            self._optuna.tell(trial, state=TrialState[status])
            return
        assert score is not None
        self._optuna.tell(trial, [score, float(size or 0)] if self._study.search.pareto else score)

    def _next(self) -> tuple[optuna.Trial, Setting]:
        if self._unfinished:
            return self._enqueued(self._unfinished.pop(0))
        variant = self._turn()
        first = first_setting(self._study, self._method, variant)
        if not self._is_tried(first):
            return self._enqueued(first)
        if variant is not None:
            self._optuna.enqueue_trial({"variant": variant})
        trial, setting = self._asked()
        if not self._is_tried(setting):
            return trial, setting
        trial.set_user_attr("repeats", self._spec(setting).trial_id)
        self._optuna.tell(trial, state=TrialState.FAIL)
        others = [s for s in self._untried() if s["variant"] == variant]
        return self._enqueued(self._random().choice(others))

    def _turn(self) -> Variant | None:
        """The variant with the fewest trials so far, of those with a setting left."""
        variants = variants_of(self._study, self._method)
        if all_settings(self._study, self._method) is not None:
            left = {setting["variant"] for setting in self._untried()}
            variants = [variant for variant in variants if variant in left]
        tries = Counter(self._tried.values())
        return min(variants, key=lambda variant: tries[variant])

    def _untried(self) -> list[Setting]:
        everything = all_settings(self._study, self._method) or []
        return [setting for setting in everything if not self._is_tried(setting)]

    def _is_tried(self, setting: Setting) -> bool:
        return self._spec(setting).config.config_hash in self._tried

    def _enqueued(self, setting: Setting) -> tuple[optuna.Trial, Setting]:
        self._optuna.enqueue_trial(setting)
        return self._asked()

    def _asked(self) -> tuple[optuna.Trial, Setting]:
        # A new sampler for each suggestion: it depends only on the trials so far,
        # so that a resumed study needs no other state.
        self._optuna.sampler = sampler(self._random().randrange(2**32))
        trial = self._optuna.ask()
        return trial, suggest_setting(self._study, self._method, trial)

    def _random(self) -> random.Random:
        # By trials that count: an interrupted one is asked for again and changes nothing.
        return random.Random(f"{self._study.search.seed}-{self._method}-{len(self._tried)}")

    def _spec(self, setting: Setting) -> TrialSpec:
        return search_trial(self._study, self._method, setting)


def sampler(seed: int) -> BaseSampler:
    """The sampler of settings after the first ones."""
    return TPESampler(n_startup_trials=START, multivariate=True, constant_liar=True, seed=seed)


def setting_of(
    study: StudyConfig, method: Method, trial: optuna.trial.FrozenTrial
) -> Setting | None:
    """A trial's setting; None if the process was killed during the suggestion."""
    try:
        return suggest_setting(study, method, optuna.trial.FixedTrial(trial.params))
    except ValueError:
        return None


def open_journal(journal: Path) -> JournalStorage:
    """The Optuna storage of a study's journal file; also opens in optuna-dashboard."""
    return JournalStorage(JournalFileBackend(str(journal)))


def optuna_study_name(study: StudyConfig, method: Method) -> str:
    """The study's name, the method, and a hash of the search: another space, fixed value or
    objective means another search."""
    first = [first_setting(study, method, v) for v in variants_of(study, method)]
    settings = all_settings(study, method)
    space = [study.range_of("learning_rate"), first] if settings is None else settings
    fixed = search_trial(study, method, first[0]).config.config_hash
    objectives = 2 if study.search.pareto else 1
    return f"{study.study}-{method}-{canonical_hash([space, fixed, objectives])[:8]}"
