"""Figures of the search: its history, which settings matter, and how."""

from __future__ import annotations

import pandas as pd
from matplotlib.ticker import MaxNLocator

from perpeft_ray.config import VARIED
from perpeft_ray.report.drawing import (
    GREY,
    VARIANT_COLOURS,
    VARIANT_MARKERS,
    StudyFigure,
    legend,
    panels,
)
from perpeft_ray.report.summary import SELECTION
from perpeft_ray.study.questions.front import on_front

_SETTINGS = ("variant", *VARIED)
_LABELS = {"conditioning_weight": "conditioning weight λ", "learning_rate": "learning rate"}


def search_history(trials: pd.DataFrame, epochs: pd.DataFrame) -> StudyFigure | None:
    """The search's trials in the order in which they began, and the best so far.

    A pruned trial stands at the best validation that it reached. None without a finished trial.
    """
    tried = _tried(trials)
    if tried.empty:
        return None
    reached = epochs.groupby("trial_id")["best_valid_ndcg_at_20"].max()
    tried["score"] = 100 * tried[SELECTION].fillna(tried.trial_id.map(reached))
    figure, [axes] = panels(1)
    for variant, rows in tried.groupby("variant"):
        done, pruned = (rows[rows.status == status] for status in ("COMPLETE", "PRUNED"))
        colour = VARIANT_COLOURS[variant]
        axes.scatter(
            done.number, done.score, color=colour, marker=VARIANT_MARKERS[variant], label=variant
        )
        axes.scatter(pruned.number, pruned.score, color=colour, marker="x")
    best = tried.score.where(tried.status == "COMPLETE").cummax().ffill()
    axes.step(tried.number, best, where="post", color=GREY, label="best so far")
    if (tried.status == "PRUNED").any():
        axes.scatter([], [], color=GREY, marker="x", label="pruned")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="trial of the search", ylabel="validation NDCG@20 × 100")
    legend(figure, columns=3)
    return StudyFigure(
        "search_history",
        "The search",
        f"{len(tried)} trials of PerPEFT, of which {int((tried.status == 'PRUNED').sum())} were "
        f"stopped early (crosses); the best reached {best.max():.2f} in validation.",
        figure,
    )


def search_front(trials: pd.DataFrame) -> StudyFigure | None:
    """The search's complete trials by size and accuracy, and their Pareto front.

    None where all trials have the same size.
    """
    done = _complete(trials)
    if done.trainable_parameters.nunique() < 2:
        return None
    figure, [axes] = panels(1)
    for variant, rows in done.groupby("variant"):
        axes.scatter(
            rows.trainable_parameters,
            100 * rows[SELECTION],
            color=VARIANT_COLOURS[variant],
            marker=VARIANT_MARKERS[variant],
            label=variant,
        )
    front = done[on_front(done.trainable_parameters, done[SELECTION])]
    front = front.sort_values("trainable_parameters")
    axes.step(
        front.trainable_parameters,
        100 * front[SELECTION],
        where="post",
        color=GREY,
        zorder=1,
        label="Pareto front",
    )
    axes.set_xscale("log")
    axes.set(xlabel="trainable parameters of PEFT modules", ylabel="validation NDCG@20 × 100")
    legend(figure, columns=3)
    return StudyFigure(
        "search_front",
        "Accuracy against size in the search",
        f"{len(done)} complete trials; {len(front)} are on the front, from "
        f"{front.trainable_parameters.min():,.0f} parameters ({100 * front[SELECTION].min():.2f}) "
        f"to {front.trainable_parameters.max():,.0f} ({100 * front[SELECTION].max():.2f}).",
        figure,
    )


def parameter_importance(trials: pd.DataFrame) -> StudyFigure | None:
    """The share of the search's variance that each setting explains (fANOVA).

    None where there are no more complete trials than settings that differ: anything would explain
    them.
    """
    from perpeft_ray.study.search.importance import setting_importances

    done = _complete(trials)
    if len(done) <= sum(done[name].nunique(dropna=False) > 1 for name in _SETTINGS):
        return None
    settings = [
        {name: None if pd.isna(value) else value for name, value in row.items()}
        for row in done[list(_SETTINGS)].to_dict("records")
    ]
    shares = setting_importances(settings, done[SELECTION].tolist())
    if not shares:
        return None
    names = list(reversed(shares))
    figure, [axes] = panels(1, height=0.6 + 0.3 * len(names))
    bars = axes.barh(
        [_LABELS.get(name, name) for name in names],
        [100 * shares[name] for name in names],
        color=VARIANT_COLOURS["lora"],
    )
    axes.bar_label(bars, fmt="%.0f", padding=3)
    axes.grid(visible=False)
    axes.set(xlabel="share of the variance, %", xlim=(0, 115))
    return StudyFigure(
        "parameter_importance",
        "Which settings matter",
        f"Share of the variance of validation NDCG@20 over {len(done)} complete trials of the "
        "search that each setting explains (fANOVA). With few trials it says little.",
        figure,
    )


def _tried(trials: pd.DataFrame) -> pd.DataFrame:
    searched = trials[
        (trials.phase == "search")
        & (trials.method == "perpeft")
        & trials.status.isin(["COMPLETE", "PRUNED"])
    ].sort_values("started_at")
    return searched.assign(number=range(1, len(searched) + 1))


def _complete(trials: pd.DataFrame) -> pd.DataFrame:
    tried = _tried(trials)
    return tried[tried.status == "COMPLETE"]
