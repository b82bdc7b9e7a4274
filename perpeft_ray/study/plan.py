"""Plans a study's trials and their order, and finds the best; pure, without Ray."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from perpeft_ray.config import (
    PERSONAL_METHODS,
    SIMPLE_METHODS,
    VARIED,
    Method,
    Mode,
    StudyConfig,
    TrialConfig,
    Variant,
)
from perpeft_ray.store.record import Phase, Searched
from perpeft_ray.study.search.space import Setting, all_settings, first_setting, variants_of

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
        return self.phase != "search"

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


def is_one_of(trial_id: str, keys: Collection[Key]) -> bool:
    """Whether a trial id belongs to one of these trials."""
    return any(
        trial_id.startswith(f"{phase}-") and trial_id.endswith(f"-{config_hash[:8]}")
        for phase, config_hash in keys
    )


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
    specs = simple_trials(study)
    searched = searching_methods(study)
    for method in study.methods:
        if method in SIMPLE_METHODS:
            continue
        if method in searched:
            configs = [config for (name, _), config in best.items() if name == method]
        elif _takes_perpefts(study, method):
            perpeft = [config for (name, _), config in best.items() if name == "perpeft"]
            configs = [_with_method(study, method, config) for config in perpeft]
        else:
            configs = [
                search_trial(study, method, first_setting(study, method, variant)).config
                for variant in variants_of(study, method)
            ]
        for seed in study.seeds:
            for config in configs:
                changed = replace(config, seed=seed)
                specs.append(TrialSpec("ablation", changed))
    return specs


def simple_trials(study: StudyConfig) -> list[TrialSpec]:
    """One trial of each simple baseline: neither seed nor learning rate changes its result."""
    rate = study.values("learning_rate")[0]
    configs = (
        study.trial(method, seed=study.seeds[0], learning_rate=rate)
        for method in study.methods
        if method in SIMPLE_METHODS
    )
    return [TrialSpec("ablation", config) for config in configs]


def other_mode_trials(study: StudyConfig, config: TrialConfig) -> list[TrialSpec]:
    """PerPEFT in the training mode that the study does not use, for every seed.

    `config`: PerPEFT's best, of the best variant. Empty if `parallel_workers` is 0 or PerPEFT is
    not among the methods.
    """
    if study.parallel_workers == 0 or "perpeft" not in study.methods:
        return []
    mode: Mode = "sequential" if study.mode == "parallel" else "parallel"
    at_once = config.groups or 1 if mode == "parallel" else 1
    changed = replace(config, mode=mode, step_batches=at_once)
    configs = [replace(changed, seed=seed) for seed in study.seeds]
    return [TrialSpec("ablation", config) for config in configs]


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
    other = [config for (method, _), config in some.items() if method == "perpeft"]
    return (
        sum(search_budget(study, method) for method in searching_methods(study))
        + len(ablation_trials(study, some))
        + (len(other_mode_trials(study, other[0])) if other else 0)
    )


def best_configs(searched: Iterable[Searched]) -> Best:
    """The config with the highest score per method and variant, the first among equals."""
    best: dict[Cell, Searched] = {}
    for row in searched:
        cell = (row.config.method, row.config.variant)
        if row.score is not None and (cell not in best or row.score > (best[cell].score or 0.0)):
            best[cell] = row
    return {cell: row.config for cell, row in best.items()}


def resources_of_worker(study: StudyConfig) -> dict[str, float]:
    """Ray resources of each of a trial's workers, without zeros."""
    amounts = {"CPU": float(study.cpus_per_worker), "GPU": study.gpus}
    return {name: amount for name, amount in amounts.items() if amount}


def workers_that_fit(node: Mapping[str, float], worker: Mapping[str, float]) -> int:
    """How many workers with these resources fit on a node with those."""
    # Three times a third of a GPU is one GPU.
    return min(math.floor(node.get(kind, 0.0) / each + 1e-9) for kind, each in worker.items())


def _takes_perpefts(study: StudyConfig, method: Method) -> bool:
    """Whether a method is PerPEFT with one change, and takes its settings."""
    return method in PERSONAL_METHODS and method != "perpeft" and not study.search.every_method


def _with_method(study: StudyConfig, method: Method, perpeft: TrialConfig) -> TrialConfig:
    """PerPEFT's config with one change."""
    shared = {name: getattr(perpeft, name) for name in ("variant", *VARIED)}
    return study.trial(method, seed=study.seeds[0], **shared)


def _space_size(study: StudyConfig, method: Method) -> float:
    settings = all_settings(study, method)
    return math.inf if settings is None else len(settings)
