"""Computes the numbers of the tables from the rows of `trials/`; data frames in and out.

Metrics are as in `trials/`, in [0, 1]; tables show them × 100.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from perpeft_ray.config import (
    METHODS,
    PEFT_METHODS,
    SIMPLE_METHODS,
    VARIANTS,
    VARIED,
    StudyConfig,
    exists,
)
from perpeft_ray.metrics import CUTOFFS

METRICS = tuple(f"{name}_at_{k}" for name in ("hr", "ndcg") for k in CUTOFFS)
SELECTION = "valid_ndcg_at_20"
"""The metric that chooses settings and epochs."""
COSTS = (
    "trainable_parameters",
    "trainable_fraction",
    "stage1_seconds",
    "stage2_seconds",
    "stage3_seconds",
    "evaluate_seconds",
    "peak_memory_mb",
)

CELL = ["method", "variant"]
"""The columns that identify a row of a table."""


def ablation_summary(trials: pd.DataFrame) -> pd.DataFrame:
    """Test metrics over seeds, one row per method, variant and metric.

    Columns: method, variant (null for methods without PEFT), metric (`hr_at_10` … `ndcg_at_30`),
    mean, std (ddof = 1, null for one seed), seeds. Methods and variants are in the
    paper's order. If a seed ran again with another setting, the later trial counts.
    """
    long = (
        final_trials(trials)
        .rename(columns={f"test_{name}": name for name in METRICS})
        .melt(id_vars=[*CELL, "seed"], value_vars=list(METRICS), var_name="metric")
    )
    by_cell = long.groupby([*CELL, "metric"], dropna=False, sort=False)["value"]
    summary = by_cell.agg(mean="mean", std="std", seeds="count").reset_index()
    return in_paper_order(summary)


def final_trials(trials: pd.DataFrame) -> pd.DataFrame:
    """The COMPLETE trials of the ablation, one per data set, cell and seed: the latest."""
    done = trials[(trials.phase == "ablation") & (trials.status == "COMPLETE")]
    place = ["dataset", "encoder", *CELL, "seed"]
    return done.sort_values("finished_at").drop_duplicates(place, keep="last")


def expected_trials(study: StudyConfig) -> int:
    """Number of trials of a study's finished ablation."""
    variants = study.values("variant")
    cells = sum(
        sum(exists(method, variant) for variant in variants) if method in PEFT_METHODS else 1
        for method in study.methods
        if method not in SIMPLE_METHODS
    )
    simple = sum(method in SIMPLE_METHODS for method in study.methods)
    return simple + len(study.seeds) * cells


def best_settings(trials: pd.DataFrame) -> pd.DataFrame:
    """The search's best trial of PerPEFT for each variant, by validation NDCG@20.

    Columns: variant, the searchable settings, valid_ndcg_at_20, trials (COMPLETE trials of the
    variant).
    """
    tried = searched(trials, ["perpeft"])
    best = tried.sort_values(SELECTION, ascending=False, kind="stable").drop_duplicates("variant")
    counts = tried.groupby("variant").size().rename("trials").reset_index()
    return in_paper_order(best[["variant", *VARIED, SELECTION]].merge(counts, on="variant"))


def costs(trials: pd.DataFrame) -> pd.DataFrame:
    """Cost of a trial of each method, variant and rank: medians over the final trials.

    In a study that only compares settings, medians over those trials. Columns: method, variant,
    rank, trials, epoch_seconds (of stage 3, without evaluation), and medians under their
    names in `trials/`.
    """
    final = final_trials(trials)
    if final.empty:
        final = of_settings(trials)
    final = final.assign(epoch_seconds=final.stage3_seconds / final.stage3_epochs)
    by_cell = final.groupby([*CELL, "rank"], dropna=False, sort=False)
    medians = by_cell[["epoch_seconds", *COSTS]].median()
    medians.insert(0, "trials", by_cell.size())
    return in_paper_order(medians.reset_index())


def of_settings(trials: pd.DataFrame) -> pd.DataFrame:
    """The COMPLETE trials of a study that compares given settings; they read test."""
    return trials[(trials.phase == "settings") & (trials.status == "COMPLETE")]


def sensitivity(trials: pd.DataFrame) -> pd.DataFrame:
    """Test NDCG@20 of PerPEFT against one setting at a time, with the others fixed.

    The others are fixed where this setting has most values. Uses all trials that read test.
    Columns: parameter (of `VARIED`), variant, value, mean, std, seeds; empty if no such
    trials vary a setting.
    """
    complete = (trials.phase != "search") & (trials.status == "COMPLETE")
    done = trials[complete & (trials.method == "perpeft")].drop_duplicates("config_hash")
    done = in_paper_order(done)
    curves = [
        curve.assign(parameter=parameter)
        for parameter in VARIED
        for _, of_variant in done.groupby("variant", sort=False)
        if (curve := _curve(of_variant, parameter)) is not None
    ]
    names = ["parameter", "variant", "value", "mean", "std", "seeds"]
    if not curves:
        return pd.DataFrame(columns=names)
    return pd.concat(curves, ignore_index=True)[names]


def _curve(done: pd.DataFrame, parameter: str) -> pd.DataFrame | None:
    """One line of the sensitivity figure; None if the parameter has fewer than two values."""
    others = [name for name in VARIED if name != parameter]
    rows = done[done[parameter].notna()]
    held = rows.groupby(others, dropna=False)
    values = held[parameter].transform("nunique")
    if values.empty or values.max() < 2:
        return None
    widest = held.ngroup() == held.ngroup()[values.idxmax()]
    by_value = rows[widest].groupby([parameter, "variant"])["test_ndcg_at_20"]
    curve = by_value.agg(mean="mean", std="std", seeds="count").reset_index()
    return curve.rename(columns={parameter: "value"})


def searched(trials: pd.DataFrame, methods: Sequence[str]) -> pd.DataFrame:
    """The COMPLETE trials of the search for these methods."""
    complete = (trials.phase == "search") & (trials.status == "COMPLETE")
    return trials[complete & trials.method.isin(methods)]


def in_paper_order(frame: pd.DataFrame) -> pd.DataFrame:
    """Sort rows by method and variant, keeping other order."""
    order = pd.DataFrame(index=frame.index)
    for name, values in (("method", METHODS), ("variant", VARIANTS)):
        if name in frame:
            order[name] = frame[name].map({value: place for place, value in enumerate(values)})
    rows = order.sort_values(list(order.columns), kind="stable").index
    return frame.loc[rows].reset_index(drop=True)


def labels(rows: pd.DataFrame) -> pd.Series:
    """The method and variant of each row in words, such as `perpeft lora`."""
    return rows.method + (" " + rows.variant).fillna("")
