"""Plans a study of own data before it begins: its settings, time, and the effect it can show."""

from __future__ import annotations

import os
import re
import tempfile
import time
from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from perpeft_ray.config import AUTO, PERSONAL_METHODS, SIMPLE_METHODS, StudyConfig
from perpeft_ray.config.presets import REAL_DATA, with_settings
from perpeft_ray.data.interactions import Dataset
from perpeft_ray.data.sources import open_dataset
from perpeft_ray.data.split import MIN_INTERACTIONS, Split, split_dataset
from perpeft_ray.encoder.source import default_encoder, is_fetched
from perpeft_ray.errors import InputError
from perpeft_ray.metrics import ndcg
from perpeft_ray.report.power import POWER, smallest_effect
from perpeft_ray.report.statistics import LEVEL
from perpeft_ray.screen import counted
from perpeft_ray.store.description import check_same, dotted, from_json
from perpeft_ray.store.folder import described, study_place
from perpeft_ray.study.check import check_histories, check_settings
from perpeft_ray.study.plan import count_trials, search_budget, searching_methods, variants_of
from perpeft_ray.study.run import anywhere

if TYPE_CHECKING:
    from perpeft_ray.recommender.simple import SimpleMethod

GROUP_USERS = 50
"""Least users per group, on average."""
_MOST_TRIALS = 100
_SAMPLE_ITEMS = 300


@dataclass(frozen=True)
class StudyPlan:
    """The plan of a study; `print` shows it."""

    config: StudyConfig
    lines: tuple[str, ...]
    begun: bool = False
    """Whether the study has begun: it then keeps its settings."""

    def __str__(self) -> str:
        return "\n".join(self.lines)


@dataclass(frozen=True)
class Cost:
    """Estimated seconds on this machine, scaled up from a sample."""

    prepare: float
    """Decoding and tokenising all items."""
    epoch: float
    """Training for one epoch."""
    evaluation: float
    """Evaluating with one module, which encodes all items."""


def plan_study(
    config: StudyConfig,
    budget: str = "",
    *,
    given: Collection[str] | None = None,
    cache: Path | None = None,
    fetch: bool = True,
) -> StudyPlan:
    """Choose settings by the data, except the `given` ones, and estimate the study.

    `budget`: time for the study, such as `2h`; it determines `search.trials`. `given`: dotted names
    of settings of `config` to keep; None: those that differ from `StudyConfig`'s defaults. `cache`:
    keeps what is prepared from raw data; None: writes nothing. `fetch`: whether to download weights
    to measure a step. A started study keeps its settings. Raises InputError for unusable data, and
    for a started study that cannot be resumed.
    """
    if given is None:
        defaults = dotted(asdict(StudyConfig(encoder=AUTO, dataset=config.dataset)))
        given = {name for name, value in dotted(asdict(config)).items() if value != defaults[name]}
    budget_s = seconds_of(budget) if budget else None
    if budget and "search.trials" in given:
        raise InputError("either `budget` or `search.trials` must be given, but both are")
    if "study" not in given:
        config = replace(config, study=_name(config.dataset))
    place = study_place(config.storage, config.study)
    if begun := described(place):
        kept = {name: value for name, value in dotted(asdict(config)).items() if name in given}
        was = from_json(StudyConfig, begun["config"], place)
        resumed = anywhere(with_settings(was, kept))
        check_same(begun["config"], resumed, place)
        line = f"Resumes {resumed.study} with the settings it began with."
        return StudyPlan(resumed, (line,), begun=True)
    with tempfile.TemporaryDirectory(prefix="perpeft-plan-") as scratch:
        dataset = open_dataset(config.dataset, cache or Path(scratch), config.data)
        has_images = bool(dataset.items["image"].notna().any())
        weights = f"as given, {config.encoder}"
        if config.encoder == AUTO:
            encoder, weights = default_encoder(config.dataset, has_images=has_images)
            config = replace(config, encoder=encoder)
        split = split_dataset(dataset, config.data)
        users, sample = len(split.evaluated("test")), config.data.sample_users
        if users < 2:
            raise InputError(
                f"`dataset` {config.dataset} must have at least 2 users with a test item, but has "
                f"{users}"
                if sample is None
                else "`data.sample_users` must be enough for 2 users with a test item, but "
                f"{sample} has {users}"
            )
        check_histories(split)
        config = chosen(config, given, users)
        cost = None
        if fetch or is_fetched(config.encoder):
            check_settings(config, split.num_users)
            cost = measured(config, dataset, Path(scratch))
    if cost is not None and budget_s is not None and "search.trials" not in given:
        config = within(config, cost, budget_s)
    return StudyPlan(config, tuple(_lines(config, dataset, split, weights, cost, budget_s)))


def chosen(config: StudyConfig, given: Collection[str], users: int) -> StudyConfig:
    """The settings for `users` evaluated users of a real catalogue, except the `given` ones."""
    groups = tuple(g for g in (4, 8) if users >= g * GROUP_USERS) or (2,)
    are_given = {"search.groups", "grouping.groups"} & set(given)
    most = max(config.values("groups") if are_given else groups)
    per_step = users // (8 * most)  # at least 8 steps per epoch for a group's module
    wanted: dict[str, Any] = {
        **REAL_DATA,
        "search.variants": ("lora",),
        "search.trials": 8,
        "search.groups": groups,
        "search.conditioning_weights": (1.0, 0.5),
        "search.learning_rates": (3e-3, 1.5e-3, 6e-3),
        "train.batch_size": min(max(2 ** max(per_step.bit_length() - 1, 0), 16), 128),
    }
    if "peft.variant" not in given and "search.variants" in given:
        wanted["search.trials"] = 8 * len(config.search.variants)
    return with_settings(config, {n: v for n, v in wanted.items() if n not in given})


def measured(config: StudyConfig, dataset: Dataset, scratch: Path) -> Cost:
    """Train `global` on a few users for two epochs, and scale up to all users and items.

    The second epoch is measured, which no longer includes loading.
    """
    import torch

    from perpeft_ray.train.trial import run_trial
    from perpeft_ray.train.workspace import prepare_dataset

    threads = torch.get_num_threads()
    torch.set_num_threads(config.cpus_per_worker)
    few = _sample(dataset)
    began = time.perf_counter()
    workspace = prepare_dataset(few, config.encoder, scratch)
    prepared = time.perf_counter() - began
    variant = variants_of(config, "global")[0]
    first = {name: config.values(name)[0] for name in ("rank", "groups")}
    trial = config.trial("global", seed=0, variant=variant, **first)
    trial = replace(trial, stage1_epochs=1, stage3_epochs=1, validate_every=1, patience=0)
    outcome = run_trial(trial, workspace, lambda _: None, test=False, memory_gb=config.memory_gb)
    torch.set_num_threads(threads)
    users = dataset.interactions["user_id"].nunique() / few.interactions["user_id"].nunique()
    items = len(dataset.items) / len(few.items)
    return Cost(
        prepare=items * prepared,
        epoch=users * outcome.stage3_seconds,
        evaluation=items * outcome.evaluate_seconds / 2,
    )


def estimated(config: StudyConfig, cost: Cost) -> float:
    """Seconds of a study if no trial ends early and every method is as slow as `global`."""
    at_once = max(
        min(
            config.search.max_concurrent,
            (os.cpu_count() or 1) // (config.workers * config.cpus_per_worker),
        ),
        1,
    )
    searching = searching_methods(config)
    seconds = 0.0
    for method in config.methods:
        if method in SIMPLE_METHODS:
            continue
        searched = search_budget(config, method) if method in searching else 0
        seeds = len(config.seeds) - (method in searching)  # the search has trained the first seed
        trials = searched + seeds * len(variants_of(config, method))
        train = config.train
        epochs = train.epochs + train.personal_epochs
        modules = max(config.values("groups")) if method in PERSONAL_METHODS else 1
        validations = train.epochs + modules * train.personal_epochs
        each = epochs * cost.epoch + validations / train.validate_every * cost.evaluation
        seconds += trials * each
    return cost.prepare + seconds / at_once


def within(config: StudyConfig, cost: Cost, budget_s: float) -> StudyConfig:
    """The study with the most search trials within a budget by `estimated`, or the fewest."""
    least = len(config.values("variant"))
    sizes = [
        with_settings(config, {"search.trials": trials}) for trials in range(least, _MOST_TRIALS)
    ]
    fitting = [study for study in sizes if estimated(study, cost) <= budget_s]
    most = fitting[-1] if fitting else sizes[0]
    return with_settings(most, {"search.trials": search_budget(most, "perpeft")})


def seconds_of(text: str) -> float:
    """A time such as `2h`, `90m` or `1h30m` in seconds. Raises InputError for any other form."""
    found = re.fullmatch(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?", text.strip().lower())
    hours, minutes = found.groups("0") if found else ("0", "0")
    seconds = 3600 * float(hours) + 60 * float(minutes)
    if not seconds:
        raise InputError(f"`budget` must be a time such as 2h, 90m or 1h30m, but is {text!r}")
    return seconds


def _lines(
    config: StudyConfig,
    dataset: Dataset,
    split: Split,
    weights: str,
    cost: Cost | None,
    budget_s: float | None,
) -> list[str]:
    users = len(split.evaluated("test"))
    images = int(dataset.items["image"].notna().sum())
    train = config.train
    groups = config.values("groups")
    of_group = users // max(groups)
    searched = search_budget(config, "perpeft")
    return [
        f"Plan of {config.study}:",
        f"  data       {users:,} users to evaluate of {split.num_users:,}; {split.num_items:,} "
        f"items, {images:,} with an image; {len(dataset.interactions):,} interactions",
        f"  encoder    {weights}",
        f"  trials     {count_trials(config)}, of them {searched} to search PerPEFT's "
        f"settings; {', '.join(config.values('variant'))}; {' or '.join(map(str, groups))} groups "
        f"(on average at least {counted(of_group, 'user')} each)",
        f"  training   {train.batch_size} users per batch; up to {train.epochs} + "
        f"{train.personal_epochs} epochs, ended by {train.patience or 'no'} validations "
        f"without a new best",
        "  time       " + _time(config, cost, budget_s),
        "  shows      " + _shows(config, split),
    ]


def _time(config: StudyConfig, cost: Cost | None, budget_s: float | None) -> str:
    if cost is None:
        return "not known before the encoder's weights are on this machine"
    seconds = estimated(config, cost)
    text = (
        f"about {_duration(seconds)} if no trial ends early, estimated from a short training here"
    )
    if budget_s is not None and seconds > budget_s:
        text += f"; more than the budget of {_duration(budget_s)}: give fewer epochs or methods"
    return text


def _shows(config: StudyConfig, split: Split) -> str:
    """The smallest effect, from the spread over users of the better of two counted methods."""
    from perpeft_ray.recommender.simple import simple_ranks

    methods: tuple[SimpleMethod, ...] = ("item_knn", "popularity")
    values = {}
    for method in methods:
        ranks = simple_ranks(method, split, "valid")
        values[method] = ndcg(ranks[ranks >= 0], 20)
    best = max(values, key=lambda method: float(values[method].mean()))
    mean, users = float(values[best].mean()), len(split.evaluated("test"))
    if not mean:
        return "not known: counting finds nobody's next item, so the spread over users is unknown"
    if np.ptp(values[best]) == 0:
        return f"not known: not enough users in validation ({len(values[best])})"
    deviation = float(np.std(values[best], ddof=1))
    effect = smallest_effect(users, deviation, LEVEL / len(config.values("variant")))
    return (
        f"a gain of {100 * effect / mean:.0f} % or more, in {POWER:.0%} of such studies, over a "
        f"method like {best} (NDCG@20 × 100 {100 * mean:.2f} in validation)"
    )


def _sample(dataset: Dataset) -> Dataset:
    """The first evaluated users with at most `_SAMPLE_ITEMS` items, and those items."""
    rows = dataset.interactions
    rows = rows[rows.groupby("user_id")["item_id"].transform("size") >= MIN_INTERACTIONS]
    by_user = rows.iloc[np.argsort(rows["user_id"].factorize()[0], kind="stable")]
    so_far = (~by_user["item_id"].duplicated()).cumsum()
    of_user = so_far.groupby(by_user["user_id"], sort=False).max()
    few = of_user.index[: max(int((of_user <= _SAMPLE_ITEMS).sum()), 1)]
    interactions = rows[rows["user_id"].isin(few)].reset_index(drop=True)
    items = dataset.items[dataset.items["item_id"].isin(interactions["item_id"])]
    return replace(dataset, interactions=interactions, items=items.reset_index(drop=True))


def _name(dataset: str) -> str:
    """A study's name from its data: the last part of a path, as a plain word."""
    last = re.split(r"[/#:]", dataset.rstrip("/"))[-1]
    return re.sub(r"[^\w-]+", "_", last).strip("_") or "study"


def _duration(seconds: float) -> str:
    minutes = max(round(seconds / 60), 1)
    return f"{minutes} min" if minutes < 120 else f"{minutes / 60:.1f} h"
