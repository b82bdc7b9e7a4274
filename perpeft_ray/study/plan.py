"""Plans a study's trials and their order, and finds the best; without Ray and Optuna.

A *setting* is a dictionary of the values that apply: the variant, if the method has one, and those
of `config.SEARCHABLE`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from itertools import product
from typing import Any

from perpeft_ray.config import (
    PEFT_METHODS,
    PERSONAL_METHODS,
    SEARCHABLE,
    SIMPLE_METHODS,
    VARIED,
    Method,
    StudyConfig,
    TrialConfig,
    Variant,
    exists,
)
from perpeft_ray.store.record import Phase, Searched, Status, TrialRecord
from perpeft_ray.train.outcome import EpochRecord, TrialOutcome

Setting = dict[str, Any]
Key = tuple[str, str]
"""(phase, config_hash): a trial of a study, as in `StudyFolder.finished`."""
Cell = tuple[Method, Variant | None]
"""A method and variant: a cell of the study's table."""
Best = Mapping[Cell, TrialConfig]
"""The best config of a method and variant, by validation."""


@dataclass(frozen=True)
class TrialSpec:
    """One trial to run: its config, and settings that do not affect its result."""

    phase: Phase
    config: TrialConfig

    @property
    def test(self) -> bool:
        """Whether to read the test items: never in the search."""
        return not self.is_searched

    @property
    def key(self) -> Key:
        """The key by which finished trials are found."""
        return self.phase, self.config.config_hash

    @property
    def is_searched(self) -> bool:
        """Whether Optuna suggested it."""
        return self.phase == "search"

    @property
    def trial_id(self) -> str:
        """Readable, and the same whenever the same trial is planned."""
        config = self.config
        return (
            f"{self.phase}-{config.method}-{config.variant or 'none'}"
            f"-seed{config.seed}-{config.config_hash[:8]}"
        )

    def to_tune(self) -> dict[str, Any]:
        """The trial as plain values for Tune."""
        return asdict(self)

    @classmethod
    def from_tune(cls, values: Mapping[str, Any]) -> TrialSpec:
        """The inverse of `to_tune`."""
        return cls(values["phase"], TrialConfig(**values["config"]))

    def record(
        self,
        study: str,
        status: Status,
        epochs: Sequence[EpochRecord],
        started_at: datetime,
        *,
        outcome: TrialOutcome | None = None,
        error: str | None = None,
    ) -> TrialRecord:
        """The record of the trial, which ends now."""
        return TrialRecord(
            study=study,
            trial_id=self.trial_id,
            phase=self.phase,
            status=status,
            error=error,
            config=self.config,
            outcome=outcome,
            epochs=epochs,
            started_at=started_at,
            finished_at=datetime.now(UTC),
        )


def applying(method: Method, variant: Variant | None) -> list[str]:
    """Names of the searchable settings that apply to a method with a variant."""
    return [setting.name for setting in SEARCHABLE if setting.applies(method, variant)]


def variants_of(study: StudyConfig, method: Method) -> list[Variant | None]:
    """The variants to search for a method; only None for methods without a PEFT module."""
    if method not in PEFT_METHODS:
        return [None]
    return [variant for variant in study.values("variant") if exists(method, variant)]


def first_setting(study: StudyConfig, method: Method, variant: Variant | None) -> Setting:
    """The first value of everything that applies; the middle of a range."""
    names = applying(method, variant)
    return {"variant": variant, **{name: study.values(name)[0] for name in names}}


def all_settings(study: StudyConfig, method: Method) -> list[Setting] | None:
    """Every setting, in the order of the given values; None if one has a range."""
    if any(study.range_of(name) for name in VARIED):
        return None
    return [
        {"variant": variant, **dict(zip(applying(method, variant), values, strict=True))}
        for variant in variants_of(study, method)
        for values in product(*(study.values(name) for name in applying(method, variant)))
    ]


def search_trial(study: StudyConfig, method: Method, setting: Setting) -> TrialSpec:
    """The search's trial of a method's setting, with the study's first seed."""
    config = study.trial(method, seed=study.seeds[0], **setting)
    return TrialSpec("search", config)


def searching_methods(study: StudyConfig) -> list[Method]:
    """Methods with a search: PerPEFT, and those that do not take PerPEFT's settings.

    PerPEFT with one change takes PerPEFT's settings, unless `search.every_method`. A baseline with
    only one setting needs no search.
    """
    methods: list[Method] = []
    if PERSONAL_METHODS & set(study.methods):
        methods.append("perpeft")
    for method in study.methods:
        if method in SIMPLE_METHODS or method == "perpeft" or _takes_perpefts(study, method):
            continue
        if _space_size(study, method) > len(variants_of(study, method)):
            methods.append(method)
    return methods


def search_budget(study: StudyConfig, method: Method) -> int:
    """Trials of a method's search: equally many per variant for all methods, rounded up."""
    trials = study.search.trials
    if method != "perpeft":
        per_variant = -(-trials // len(variants_of(study, "perpeft")))
        trials = per_variant * len(variants_of(study, method))
    return int(min(trials, _space_size(study, method)))


def ablation_trials(study: StudyConfig, best: Best) -> list[TrialSpec]:
    """Methods × seeds × variants, with test read.

    `best` has the best config of every searched method and variant. The others are PerPEFT with one
    change and take its config, or have only one setting. Methods are the outermost loop: neighbours
    then differ in variant or seed, so that concurrent trials seldom wait for the same stage 1.
    """
    specs = []
    searched = searching_methods(study)
    for method in study.methods:
        if method in searched:
            configs = [config for (name, _), config in best.items() if name == method]
        elif _takes_perpefts(study, method):
            configs = [
                study.trial(
                    method,
                    seed=perpeft.seed,
                    **{name: getattr(perpeft, name) for name in ("variant", *VARIED)},
                )
                for (name, _), perpeft in best.items()
                if name == "perpeft"
            ]
        else:
            configs = [
                search_trial(study, method, first_setting(study, method, variant)).config
                for variant in variants_of(study, method)
            ]
        # Nothing is random in a simple baseline.
        seeds = study.seeds[:1] if method in SIMPLE_METHODS else study.seeds
        specs += [
            TrialSpec("ablation", replace(config, seed=seed))
            for seed in seeds
            for config in configs
        ]
    return specs


def settings_trials(study: StudyConfig, configs: Iterable[TrialConfig]) -> list[TrialSpec]:
    """Each distinct config with every seed and test read; for studies of PerPEFT's settings."""
    seeded = (replace(config, seed=seed) for config in configs for seed in study.seeds)
    specs = {c.config_hash: TrialSpec("settings", c) for c in seeded}
    return list(specs.values())


def ready_trials(
    study: StudyConfig, searched: Iterable[Searched], searching: Collection[Method]
) -> list[TrialSpec]:
    """The trials after the search that are ready, including finished ones.

    `searched`: the search's finished trials; `searching`: methods whose search has not ended. A
    method waits for the end of its search, or of PerPEFT's if it takes PerPEFT's settings.
    """
    best = {c: config for c, config in best_configs(searched).items() if c[0] not in searching}
    return ablation_trials(study, best)


def count_trials(study: StudyConfig) -> int:
    """Number of trials of a study, whatever the search finds."""
    some = {
        (method, variant): search_trial(study, method, first_setting(study, method, variant)).config
        for method in searching_methods(study)
        for variant in variants_of(study, method)
    }
    searches = sum(search_budget(study, method) for method in searching_methods(study))
    return searches + len(ablation_trials(study, some))


def best_configs(searched: Iterable[Searched]) -> Best:
    """The config with the highest score per method and variant, the first among equals."""
    best: dict[Cell, Searched] = {}
    for row in searched:
        cell = (row.config.method, row.config.variant)
        if row.score is not None and (cell not in best or row.score > (best[cell].score or 0.0)):
            best[cell] = row
    return {cell: row.config for cell, row in best.items()}


def _takes_perpefts(study: StudyConfig, method: Method) -> bool:
    """Whether a method is PerPEFT with one change, and takes its settings."""
    return method in PERSONAL_METHODS and method != "perpeft" and not study.search.every_method


def _space_size(study: StudyConfig, method: Method) -> float:
    settings = all_settings(study, method)
    return math.inf if settings is None else len(settings)
