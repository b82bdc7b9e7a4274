"""The search of one method's settings by Optuna's ask and tell, stored in the study's journal."""

from __future__ import annotations

import random
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import optuna
from optuna.distributions import CategoricalDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.importance import FanovaImportanceEvaluator
from optuna.pruners import BasePruner, NopPruner
from optuna.samplers import TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from perpeft_ray.config import Method, StudyConfig, Variant
from perpeft_ray.store.files import whole_file
from perpeft_ray.store.record import Searched, Status
from perpeft_ray.study.plan import (
    Setting,
    TrialSpec,
    all_settings,
    applying,
    first_setting,
    search_budget,
    search_trial,
    searching_methods,
    variants_of,
)

SCORE, SIZE = "validation NDCG@20", "trainable parameters"
"""Names of the objectives in the journal."""
SETTING = "setting"
"""Attribute of a trial in the journal: what it was given, also what left the search."""
START = 2
"""Trials after which TPE models the scores; `benchmarks/search_regret.py` compares samplers."""


def open_searches(
    study: StudyConfig, journal: Path, ended: Mapping[str, Searched]
) -> dict[Method, Search]:
    """The searches of a study's methods, resumed from the journal and the rows.

    `ended`: the search's trials that have a COMPLETE or PRUNED row, by config hash. They say what
    was tried, since a process can be killed at any line: the journal is rewritten from them. Its
    trials without a row were interrupted, and come first.
    """
    methods = searching_methods(study)
    if not methods:
        return {}
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # trials have lines of their own
    known = {method: _trials_of(study, method, journal) for method in methods}
    with whole_file(journal) as fresh:
        storage = open_journal(fresh)
        for method, trials in known.items():
            created = optuna.create_study(
                storage=storage,
                study_name=optuna_study_name(study, method),
                directions=["maximize", "minimize"] if study.search.pareto else ["maximize"],
            )
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ExperimentalWarning)
                created.set_metric_names([SCORE, SIZE] if study.search.pareto else [SCORE])
            created.add_trials(
                _as_row_says(study, trial, ended[key])
                for key, trial in trials.items()
                if key in ended
            )
    return {
        method: Search(
            study,
            method,
            journal,
            {key: row.config.variant for key, row in ended.items() if row.config.method == method},
            [t.user_attrs[SETTING] for key, t in known[method].items() if key not in ended],
        )
        for method in methods
    }


class Search:
    """Chooses the next settings of a method.

    The first trial of each variant takes the first value of every setting; then Optuna's sampler
    suggests. Variants take turns, and no setting comes twice: a trial is deterministic. With
    `search.pareto` there are two objectives, accuracy and few trainable parameters.

    `tried`: the variants of the method's trials that have ended, by config hash. `first`: settings
    that come before any other.
    """

    def __init__(
        self,
        study: StudyConfig,
        method: Method,
        journal: Path,
        tried: Mapping[str, Variant | None],
        first: Sequence[Setting],
    ) -> None:
        self._study, self._method = study, method
        pruner: BasePruner = NopPruner()
        if method == "perpeft" and study.search.asha:
            epochs = study.train.epochs
            last = epochs + study.train.personal_epochs
            pruner = HalvingWithinVariant(epochs, study.search.grace_epochs, last)
        self._optuna = optuna.load_study(
            study_name=optuna_study_name(study, method),
            storage=open_journal(journal),
            pruner=pruner,
        )
        self._tried, self._first = dict(tried), list(first)
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
        trial.set_user_attr(SETTING, setting)
        self._running[trial_id] = trial
        self._tried[spec.config.config_hash] = setting["variant"]
        return spec

    def report(self, trial_id: str, epoch: int, score: float) -> bool:
        """Note the best score so far of a running trial, and say whether to stop it early."""
        if self._study.search.pareto:  # Optuna takes no reports of two objectives
            return False
        self._running[trial_id].report(score, step=epoch)
        return self._running[trial_id].should_prune()

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
        if self._first:
            return self._enqueued(self._first.pop(0))
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
        self._optuna.sampler = TPESampler(
            n_startup_trials=START,
            multivariate=True,
            constant_liar=True,
            seed=self._random().randrange(2**32),
        )
        trial = self._optuna.ask()
        return trial, suggest_setting(self._study, self._method, trial)

    def _random(self) -> random.Random:
        # By trials that count: an interrupted one is asked for again and changes nothing.
        return random.Random(f"{self._study.search.seed}-{self._method}-{len(self._tried)}")

    def _spec(self, setting: Setting) -> TrialSpec:
        return search_trial(self._study, self._method, setting)


def suggest_setting(study: StudyConfig, method: Method, trial: optuna.Trial) -> Setting:
    """One setting from Optuna, define-by-run.

    Suggests only what applies and has more than one value: passing a setting on the command line
    removes it from the search.
    """

    def value(name: str) -> Any:
        ends = study.range_of(name)
        if ends is not None:
            return trial.suggest_float(name, *ends, log=True)
        values = study.values(name)
        return trial.suggest_categorical(name, values) if len(values) > 1 else values[0]

    variants = variants_of(study, method)
    variant: Any = variants[0]
    if len(variants) > 1:
        variant = trial.suggest_categorical("variant", variants)
    return {"variant": variant, **{name: value(name) for name in applying(method, variant)}}


@dataclass(frozen=True)
class HalvingWithinVariant(BasePruner):
    """Asynchronous successive halving (ASHA) among the trials of one variant.

    At each rung a trial has to reach the median of the others there; the first always goes on.
    Every variant needs a best setting that was trained to its end: among all trials halving would
    drop a variant that learns slowly before its settings differ. Only epochs of stage 3
    count, since trials that differ in groups or conditioning weight share stage 1. Source: Li et
    al., MLSys 2020.
    """

    stage1_epochs: int
    grace: int
    """Epochs of stage 3 at the first rung; rungs double."""
    last: int
    """The last epoch; a trial that has had it is finished."""

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """Whether to stop a trial at its latest report, whose step is its epoch."""
        *before, now = sorted(trial.intermediate_values)
        rung = self.grace
        while self.stage1_epochs + 2 * rung <= now:
            rung *= 2
        start = self.stage1_epochs + rung
        if not max(before, default=0) < start <= now < self.last:
            return False
        others = [
            values[min(steps)]
            for other in study.get_trials(deepcopy=False)
            if other.number != trial.number
            and other.params.get("variant") == trial.params.get("variant")
            and (values := other.intermediate_values)
            and (steps := [step for step in values if step >= start])
        ]
        return bool(others) and trial.intermediate_values[now] < median(others)


def open_journal(journal: Path) -> JournalStorage:
    """The Optuna storage of a study's journal file; also opens in optuna-dashboard."""
    return JournalStorage(JournalFileBackend(str(journal)))


def optuna_study_name(study: StudyConfig, method: Method) -> str:
    """The name in the journal of the search of a method."""
    return f"{study.study}-{method}"


def _trials_of(study: StudyConfig, method: Method, journal: Path) -> dict[str, FrozenTrial]:
    """What a journal has of a method, by config hash: the latest trial of each setting.

    A trial has no setting where the process was killed while it was being suggested.
    """
    name = optuna_study_name(study, method)
    storage = open_journal(journal) if journal.exists() else None
    if storage is None or name not in optuna.get_all_study_names(storage):
        return {}
    trials = optuna.load_study(study_name=name, storage=storage).get_trials(deepcopy=False)
    return {
        search_trial(study, method, trial.user_attrs[SETTING]).config.config_hash: trial
        for trial in trials
        if SETTING in trial.user_attrs
    }


def _as_row_says(study: StudyConfig, trial: FrozenTrial, row: Searched) -> FrozenTrial:
    pareto = study.search.pareto
    reports = {} if pareto else {**trial.intermediate_values, **dict(row.validated)}
    values = [reports[max(reports)]] if reports else None
    if row.score is not None:
        values = [row.score, float(row.size or 0)] if pareto else [row.score]
    return optuna.trial.create_trial(
        state=TrialState[row.status],
        values=values,
        params=trial.params,
        distributions=trial.distributions,
        user_attrs=trial.user_attrs,
        intermediate_values=reports,
    )


def setting_importances(settings: Sequence[Setting], scores: Sequence[float]) -> dict[str, float]:
    """Share of the variance of the scores that each setting explains; most important first.

    `settings`: of finished trials, [n]; one that does not apply (the rank of (IA)³) is missing or
    None. `scores`: their validation NDCG@20, [n]. Omits settings that are the same in all trials.
    Empty if nothing varies. Source: Hutter et al., ICML 2014.
    """
    names = dict.fromkeys(name for setting in settings for name in setting)
    values = {name: tuple({setting.get(name): None for setting in settings}) for name in names}
    varied = {name: CategoricalDistribution(of) for name, of in values.items() if len(of) > 1}
    if len(set(scores)) < 2 or not varied:
        return {}
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # no message about the in-memory study
    study = optuna.create_study(direction="maximize")
    study.add_trials(
        [
            optuna.create_trial(
                params={name: setting.get(name) for name in varied},
                distributions=dict(varied),
                value=score,
            )
            for setting, score in zip(settings, scores, strict=True)
        ]
    )
    return optuna.importance.get_param_importances(
        study, evaluator=FanovaImportanceEvaluator(seed=0), params=list(varied)
    )
