"""Which trials a study has, in which order, and which of them is best; pure, without Ray."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from perpeft_ray.config import (
    PEFT_METHODS,
    PERSONAL_METHODS,
    SIMPLE_METHODS,
    Method,
    Mode,
    StudyConfig,
    TrialConfig,
    Variant,
    exists,
)
from perpeft_ray.study.record import Phase
from perpeft_ray.study.search.space import Setting, all_settings

Key = tuple[str, str]
"""(phase, config_hash): a trial of a study, as `Recorder.finished` has it."""
Cell = tuple[Method, Variant | None]
"""A method and variant: a cell of the study's table."""
Best = Mapping[Cell, TrialConfig]
"""The best config of a method and variant, by validation."""


@dataclass(frozen=True)
class TrialSpec:
    """One trial to run: its config, and what is not part of its result."""

    phase: Phase
    config: TrialConfig
    workers: int
    """Ray Train workers; 0 trains in the trial's own process."""

    @property
    def test(self) -> bool:
        """Whether the test items are read: never in the search."""
        return self.phase != "search"

    @property
    def key(self) -> Key:
        """What tells whether the trial has been run."""
        return self.phase, self.config.config_hash

    @property
    def is_searched(self) -> bool:
        """Whether Optuna suggested it, and ASHA may stop it."""
        return self.phase == "search" and self.config.method == "perpeft"

    @property
    def trial_id(self) -> str:
        """Readable, and the same whenever the same trial is planned."""
        config = self.config
        return (
            f"{self.phase}-{config.method}-{config.variant or 'none'}"
            f"-seed{config.seed}-{config.config_hash[:8]}"
        )

    def to_tune(self) -> dict[str, Any]:
        """As plain values: what Tune knows of a trial."""
        return asdict(self)

    @classmethod
    def from_tune(cls, values: Mapping[str, Any]) -> TrialSpec:
        """The trial that `to_tune` was called on."""
        return cls(values["phase"], TrialConfig(**values["config"]), values["workers"])


def is_one_of(trial_id: str, keys: Collection[Key]) -> bool:
    """Whether a trial id is that of one of these trials."""
    return any(
        trial_id.startswith(f"{phase}-") and trial_id.endswith(f"-{config_hash[:8]}")
        for phase, config_hash in keys
    )


def search_trial(study: StudyConfig, setting: Setting) -> TrialSpec:
    """The search's trial of a setting: PerPEFT with the study's first seed."""
    config = study.trial("perpeft", seed=study.seeds[0], **setting)
    return TrialSpec("search", config, study.workers)


def search_trials(study: StudyConfig) -> list[TrialSpec]:
    """The trials that the search can choose from: one for each setting."""
    return [search_trial(study, setting) for setting in all_settings(study)]


def baseline_trials(study: StudyConfig, best: Best) -> list[TrialSpec]:
    """Each method that takes its own learning rate with every one that PerPEFT could choose from.

    By validation. `best` has PerPEFT's best config of each variant: the methods that share its
    rank or groups are run for these.
    """
    specs = []
    for method in _sweeping(study):
        for learning_rate in study.values("learning_rate"):
            for source in _sources(method, best):
                config = _derived(study, method, source, learning_rate)
                specs.append(TrialSpec("search", config, study.workers))
    return specs


def ablation_trials(study: StudyConfig, best: Best) -> list[TrialSpec]:
    """Methods × seeds × variants, with test read.

    `best` has the best config of PerPEFT for each variant, and of every method and variant that
    takes its own learning rate. The others are PerPEFT with one thing changed and take its config.
    Methods are the outermost loop: neighbours then differ in variant or seed, so that trials
    running side by side seldom wait for the same stage 1.
    """
    specs = simple_trials(study)
    sweeping = _sweeping(study)
    for method in study.methods:
        if method in SIMPLE_METHODS:
            continue
        if method in sweeping or method == "perpeft":
            configs = [config for (name, _), config in best.items() if name == method]
        else:
            perpeft = [config for (name, _), config in best.items() if name == "perpeft"]
            configs = [_derived(study, method, config, config.learning_rate) for config in perpeft]
        for seed in study.seeds:
            for config in configs:
                changed = replace(config, seed=seed)
                specs.append(TrialSpec("ablation", changed, study.workers))
    return specs


def simple_trials(study: StudyConfig) -> list[TrialSpec]:
    """One trial of each simple baseline: neither seed nor learning rate changes its result."""
    rate = study.values("learning_rate")[0]
    configs = (
        study.trial(method, seed=study.seeds[0], learning_rate=rate)
        for method in study.methods
        if method in SIMPLE_METHODS
    )
    return [TrialSpec("ablation", config, study.workers) for config in configs]


def other_mode_trials(study: StudyConfig, config: TrialConfig) -> list[TrialSpec]:
    """PerPEFT in the training mode that the study does not use, for every seed.

    `config`: PerPEFT's best, of the best variant. Parallel trials have `parallel_workers` Ray
    Train workers. Empty where `parallel_workers` is 0 or PerPEFT is not among the methods.
    """
    if study.parallel_workers == 0 or "perpeft" not in study.methods:
        return []
    mode: Mode = "sequential" if study.mode == "parallel" else "parallel"
    workers = study.parallel_workers if mode == "parallel" else study.workers
    at_once = config.groups or 1 if mode == "parallel" else 1
    changed = replace(config, mode=mode, step_batches=at_once)
    configs = [replace(changed, seed=seed) for seed in study.seeds]
    return [TrialSpec("ablation", config, workers) for config in configs]


def settings_trials(study: StudyConfig, configs: Iterable[TrialConfig]) -> list[TrialSpec]:
    """Each config with every seed and test read, none twice; for studies of PerPEFT's settings."""
    seeded = (replace(config, seed=seed) for config in configs for seed in study.seeds)
    specs = {c.config_hash: TrialSpec("settings", c, study.workers) for c in seeded}
    return list(specs.values())


def sweep_trials(study: StudyConfig, best: Best) -> list[TrialSpec]:
    """`baseline_trials`, or none where one learning rate leaves nothing to choose."""
    return baseline_trials(study, best) if len(study.values("learning_rate")) > 1 else []


def ready_trials(
    study: StudyConfig,
    scores: Mapping[str, float],
    ended: Collection[Key],
    *,
    searching: bool,
) -> list[TrialSpec]:
    """The trials after the search that can be run now, those that have been run among them.

    Baselines without a variant wait for nothing, PerPEFT and `global` for the end of the search,
    and a baseline's ablation for all of its learning rates. `scores` as in `best_of`; `ended`:
    keys of trials that have been run, whatever came of them.
    """
    perpeft = {} if searching else best_configs(search_trials(study), scores)
    sweep = sweep_trials(study, perpeft)
    if sweep:
        waiting = {_cell(spec) for spec in sweep if spec.key not in ended}
        tried = best_configs(sweep, scores)
        baselines = {cell: config for cell, config in tried.items() if cell not in waiting}
    else:
        baselines = _cells(baseline_trials(study, perpeft))
    return [*sweep, *ablation_trials(study, {**perpeft, **baselines})]


def count_later_trials(study: StudyConfig) -> int:
    """How many trials follow the search; it does not depend on what the search finds."""
    some = _cells(search_trials(study))
    baselines = _cells(baseline_trials(study, some))
    return (
        len(sweep_trials(study, some))
        + len(ablation_trials(study, {**some, **baselines}))
        + len(other_mode_trials(study, search_trials(study)[0].config))
    )


def best_of(specs: Iterable[TrialSpec], scores: Mapping[str, float]) -> TrialSpec | None:
    """The trial with the highest score, the first of equals; None where none has a score.

    `scores`: validation NDCG@20 by config hash.
    """
    scored = [spec for spec in specs if spec.config.config_hash in scores]
    return max(scored, key=lambda spec: scores[spec.config.config_hash], default=None)


def best_configs(specs: Iterable[TrialSpec], scores: Mapping[str, float]) -> Best:
    """`best_of` for each method and variant that has a score."""
    cells: dict[Cell, list[TrialSpec]] = {}
    for spec in specs:
        cells.setdefault(_cell(spec), []).append(spec)
    best = {cell: best_of(in_cell, scores) for cell, in_cell in cells.items()}
    return {cell: spec.config for cell, spec in best.items() if spec is not None}


def _cell(spec: TrialSpec) -> Cell:
    return spec.config.method, spec.config.variant


def _cells(specs: Iterable[TrialSpec]) -> dict[Cell, TrialConfig]:
    """A config for each method and variant: the last of several."""
    return {_cell(spec): spec.config for spec in specs}


def _sweeping(study: StudyConfig) -> list[Method]:
    """Methods that take their own learning rate: not PerPEFT, whose search has it, nor, unless the
    study says so, those that are PerPEFT with one thing changed, nor those without one."""
    changed = set() if study.search.every_method else PERSONAL_METHODS
    without = {"perpeft", *SIMPLE_METHODS, *changed}
    return [method for method in study.methods if method not in without]


def _sources(method: Method, best: Best) -> list[TrialConfig | None]:
    """PerPEFT's configs that a method shares settings with; None for methods without a variant."""
    if method not in PEFT_METHODS:
        return [None]
    of_perpeft = (config for (name, _), config in best.items() if name == "perpeft")
    return [config for config in of_perpeft if exists(method, config.variant)]


def _derived(
    study: StudyConfig, method: Method, source: TrialConfig | None, learning_rate: float
) -> TrialConfig:
    """A method's config at PerPEFT's rank, groups and conditioning weight, where they apply."""
    shared = {}
    if source is not None:
        names = ("variant", "rank", "groups", "conditioning_weight")
        shared = {name: getattr(source, name) for name in names}
    return study.trial(method, seed=study.seeds[0], learning_rate=learning_rate, **shared)
