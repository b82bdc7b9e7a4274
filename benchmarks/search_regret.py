"""How fast the search finds good settings, against random search and Optuna's defaults.

    python benchmarks/search_regret.py record     # train every setting of the space once; an hour
    python benchmarks/search_regret.py            # simulate 50 searches of each kind on the record

The record is `results/reference/search_grid.parquet`: validation NDCG@20 of every setting of
`STUDY` on a catalogue of the toyshop that neither its
design nor a reported figure used. A search of N trials is scored by its regret: how far
the best setting that it found of each variant lies below that variant's best, mean over variants.
A setting that comes twice costs nothing.
"""

from __future__ import annotations

import itertools
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import optuna
import pandas as pd
from optuna.samplers import BaseSampler, RandomSampler, TPESampler

from perpeft_ray.config import TrialConfig
from perpeft_ray.config.presets import preset
from perpeft_ray.study.plan import all_settings, search_trial
from perpeft_ray.study.search import open_searches, suggest_setting

GRID = Path(__file__).parents[1] / "results/reference/search_grid.parquet"
SEEDS = 50
NAMES = ("variant", "groups", "rank", "conditioning_weight", "learning_rate")
Key = tuple[object, ...]
AFTER = (3, 6, 9, 12, 18, 24)
"""Trials after which the regret is read."""
BASE = preset("toyshop")
STUDY = replace(
    BASE,
    dataset="toyshop:909",
    train=replace(BASE.train, epochs=4, personal_epochs=8),
    search=replace(
        BASE.search,
        trials=max(AFTER),
        groups=(6, 8),
        conditioning_weights=(0.5, 0.25, 0.75, 1.0),
        learning_rates=(6e-3, 3e-3, 1e-2),
    ),
)
"""Wider than the preset's space, and half its epochs, so that the record takes an hour."""


def settings() -> list[TrialConfig]:
    """Every setting of the space as a trial."""
    found = all_settings(STUDY, "perpeft") or []
    return [search_trial(STUDY, "perpeft", setting).config for setting in found]


def key(config: TrialConfig) -> Key:
    """What tells settings apart."""
    return tuple(getattr(config, name) for name in NAMES)


def scores_of(grid: pd.DataFrame) -> dict[Key, float]:
    """Validation NDCG@20 of the record's settings."""
    rows = grid.astype(object).where(grid.notna(), None).to_dict("records")
    return {tuple(row[name] for name in NAMES): row["valid_ndcg_at_20"] for row in rows}


def record() -> None:
    """Train what the record lacks; it is written after every trial."""
    from perpeft_ray.train.trial import run_trial
    from perpeft_ray.train.workspace import prepare

    workspace = prepare(STUDY.dataset, STUDY.encoder, Path("results/.cache"))
    known = pd.read_parquet(GRID) if GRID.exists() else pd.DataFrame()
    done = scores_of(known)
    for config in settings():
        if key(config) in done:
            continue
        outcome = run_trial(config, workspace, lambda _: None, test=False)
        row = {
            **{name: getattr(config, name) for name in NAMES},
            "valid_ndcg_at_20": outcome.valid.ndcg_at_20,
        }
        known = pd.concat([known, pd.DataFrame([row])], ignore_index=True)
        known.astype({"rank": "Int64"}).to_parquet(GRID)
        print(len(known), row, flush=True)


def ours(scores: dict[Key, float], seed: int) -> Iterator[TrialConfig]:
    """The settings that a study's search tries."""
    study = replace(STUDY, search=replace(STUDY.search, seed=seed))
    with tempfile.TemporaryDirectory() as folder:
        search = open_searches(study, Path(folder) / "journal", {})["perpeft"]
        while search.left:
            config = search.ask("trial").config
            search.tell("trial", "COMPLETE", scores[key(config)])
            yield config


def plain(
    sampler: Callable[[int], BaseSampler],
) -> Callable[[dict[Key, float], int], Iterator[TrialConfig]]:
    """The settings that an Optuna study with a sampler tries; variants take turns here too."""

    def tried(scores: dict[Key, float], seed: int) -> Iterator[TrialConfig]:
        study = optuna.create_study(direction="maximize", sampler=sampler(seed))
        for variant in itertools.cycle(STUDY.values("variant")):
            study.enqueue_trial({"variant": variant})
            trial = study.ask()
            config = search_trial(STUDY, "perpeft", suggest_setting(STUDY, "perpeft", trial)).config
            study.tell(trial, scores[key(config)])
            yield config

    return tried


KINDS: dict[str, Callable[[dict[Key, float], int], Iterator[TrialConfig]]] = {
    "ours": ours,
    "random": plain(lambda seed: RandomSampler(seed=seed)),
    "TPE, Optuna's defaults": plain(lambda seed: TPESampler(seed=seed)),
}


def regrets(
    tried: Iterator[TrialConfig], scores: dict[Key, float], best: dict[str, float]
) -> list[float]:
    """The regret after each of `AFTER` different settings."""
    worst = min(scores.values())
    found = dict.fromkeys(best, worst)
    seen: set[Key] = set()
    out: list[float] = []
    for config in tried:
        seen.add(key(config))
        assert config.variant is not None
        found[config.variant] = max(found[config.variant], scores[key(config)])
        if len(seen) in AFTER and len(seen) > (AFTER[len(out) - 1] if out else 0):
            out.append(float(np.mean([best[v] - found[v] for v in best])))
        if len(out) == len(AFTER):
            return out
    return out + [out[-1]] * (len(AFTER) - len(out))


def simulate() -> pd.DataFrame:
    """Mean regret × 100 over the seeds, with its standard error: a row per kind of search."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    grid = pd.read_parquet(GRID)
    scores = scores_of(grid)
    missing = [config for config in settings() if key(config) not in scores]
    if missing:
        raise SystemExit(f"{GRID} lacks {len(missing)} settings: run `record` first")
    best = grid.groupby("variant").valid_ndcg_at_20.max().to_dict()
    rows = {}
    for name, kind in KINDS.items():
        found = 100 * np.array([regrets(kind(scores, seed), scores, best) for seed in range(SEEDS)])
        error = found.std(axis=0, ddof=1) / SEEDS**0.5
        rows[name] = [f"{m:.2f} ± {e:.2f}" for m, e in zip(found.mean(axis=0), error, strict=True)]
    return pd.DataFrame(rows, index=[f"after {n}" for n in AFTER]).T


if __name__ == "__main__":
    if sys.argv[1:] == ["record"]:
        record()
    elif not GRID.exists():
        print(f"not measured: {GRID} is missing; run `record` first")
    else:
        print(simulate().to_string())
