"""Figures of the comparison: accuracy against size, sensitivity, groups."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from perpeft_ray.config import METHODS, VARIANTS
from perpeft_ray.results.drawing import (
    GREY,
    VARIANT_COLOURS,
    VARIANT_MARKERS,
    StudyFigure,
    panels,
)
from perpeft_ray.results.statistics import paired_users
from perpeft_ray.results.summary import ablation_summary, costs, sensitivity
from perpeft_ray.study.questions.front import on_front

_METHOD_MARKERS = dict(zip(METHODS, "+xXv^<>12osPph*", strict=True))
_PARAMETER_LABELS = {
    "conditioning_weight": "conditioning weight λ",
    "learning_rate": "learning rate",
}
_LOGARITHMIC = {"rank": 2, "learning_rate": 10}


def accuracy_against_parameters(trials: pd.DataFrame) -> StudyFigure | None:
    """Mean test NDCG@20 against trainable parameters, and the Pareto front."""
    summary = ablation_summary(trials)
    keys = ["method", "variant", "mode"]
    points = summary[summary.metric == "ndcg_at_20"].merge(costs(trials), on=keys)
    if points.empty:
        return None
    figure, [[axes]] = panels(1)
    figure.set_size_inches(6.4, 3.8)
    positive = points.trainable_parameters[points.trainable_parameters > 0]
    if len(positive):
        below = 10.0 ** np.floor(np.log10(positive.min()))
        axes.set_xscale("symlog", linthresh=below, linscale=0.6)
    front = points[on_front(points.trainable_parameters, points["mean"])].sort_values(
        "trainable_parameters"
    )
    axes.step(front.trainable_parameters, 100 * front["mean"], where="post", color=GREY, zorder=1)
    for row in points.itertuples():
        variant = None if pd.isna(row.variant) else row.variant
        axes.errorbar(
            row.trainable_parameters,
            100 * row.mean,
            yerr=None if pd.isna(row.std) else 100 * row.std,
            color=VARIANT_COLOURS[variant],
            marker=_METHOD_MARKERS[row.method],
            markerfacecolor="white" if row.mode == "parallel" else VARIANT_COLOURS[variant],
            linestyle="none",
            capsize=2,
        )
    for variant in points.variant.dropna().unique():
        axes.plot([], [], color=VARIANT_COLOURS[variant], linewidth=5, label=variant)
    for method in points.method.unique():
        axes.plot([], [], _METHOD_MARKERS[method], color=GREY, label=method)
    if (points["mode"] == "parallel").any():
        axes.plot([], [], "o", color=GREY, markerfacecolor="white", label="parallel mode")
    axes.plot([], [], color=GREY, label="Pareto front")
    axes.set(xlabel="trainable parameters of PEFT modules", ylabel="test NDCG@20 × 100")
    figure.legend(loc="outside right upper")
    named = ", ".join(
        row.method if pd.isna(row.variant) else f"{row.method} {row.variant}"
        for row in front.itertuples()
    )
    return StudyFigure(
        "accuracy_against_parameters",
        "Accuracy against trainable parameters",
        f"Means over seeds, bars are one standard deviation. On the Pareto front: {named}.",
        figure,
    )


def sensitivity_curves(trials: pd.DataFrame) -> StudyFigure | None:
    """Test NDCG@20 against each setting that the study varies; None where it varies none."""
    curves = sensitivity(trials)
    names = list(dict.fromkeys(curves.parameter))
    if not names:
        return None
    figure, grid = panels(len(names), wrap=2)
    places = [axes for row in grid for axes in row]
    for axes, name in zip(places, names, strict=False):
        of_name = curves[curves.parameter == name]
        for (variant, mode), line in of_name.groupby(["variant", "mode"]):
            _band(axes, line, str(variant), dashed=mode == "parallel")
        if name in _LOGARITHMIC:
            axes.set_xscale("log", base=_LOGARITHMIC[name])
        values = sorted(of_name.value.unique())
        axes.set_xticks(values, [f"{value:g}" for value in values])
        axes.minorticks_off()
        axes.set_xlabel(_PARAMETER_LABELS.get(name, name))
    for row in grid:
        row[0].set_ylabel("test NDCG@20 × 100")
    for axes in places[len(names) :]:
        axes.remove()
    for variant in curves.variant.unique():
        places[0].plot(
            [], [], color=VARIANT_COLOURS[variant], marker=VARIANT_MARKERS[variant], label=variant
        )
    figure.legend(loc="outside upper center", ncols=3)
    return StudyFigure(
        "sensitivity",
        "Sensitivity of PerPEFT",
        "Means over seeds; bands are one standard deviation. The other settings are held.",
        figure,
    )


def groups_and_gains(trials: pd.DataFrame) -> StudyFigure | None:
    """Users of each group, and PerPEFT's gain over `global` there, of each variant's first seed.

    `trials`: of `read_final_trials`. None where no variant has both methods.
    """
    of_variants = {}
    for variant in VARIANTS:
        users = paired_users(trials, "perpeft", "global", variant, "ndcg@20")
        if not users.empty:
            first = users[["dataset", "seed"]].apply(tuple, axis=1)
            of_variants[variant] = users[first == first.min()]
    if not of_variants:
        return None
    figure, grid = panels(len(of_variants), rows=2)
    figure.set_size_inches(2.8 * max(len(of_variants), 2), 4.2)
    for column, (variant, users) in enumerate(of_variants.items()):
        gains = group_gains(users)
        names = [f"{group:.0f}" for group in gains.group]
        colour = VARIANT_COLOURS[variant]
        grid[0][column].bar(names, gains.users, color=colour)
        grid[0][column].set_title(variant)
        grid[1][column].bar(
            names,
            100 * gains.gain,
            yerr=100 * gains.half_width,
            color=colour,
            ecolor="#222222",
            capsize=2,
        )
        grid[1][column].axhline(0, color="#222222", linewidth=0.8)
        grid[1][column].set_xlabel("group")
    grid[0][0].set_ylabel("users")
    grid[1][0].set_ylabel("gain in NDCG@20 × 100")
    return StudyFigure(
        "groups",
        "Groups and what they gain",
        "Above, evaluated users of each group; below, PerPEFT's test NDCG@20 minus that of the "
        "global module for the same users, with its 95 % interval. First seed of each variant; "
        "groups are numbered from the largest.",
        figure,
    )


def group_gains(users: pd.DataFrame) -> pd.DataFrame:
    """Size and gain of each group, the largest first.

    `users`: of one trial from `paired_users`. Columns: group (numbered from 0 by size), users,
    gain (mean of a - b), half_width (of its 95 % interval: 1.96 standard errors; null for one
    user).
    """
    difference = (users.a - users.b).groupby(users.group)
    gains = pd.DataFrame(
        {
            "users": difference.size(),
            "gain": difference.mean(),
            "half_width": 1.96 * difference.std() / np.sqrt(difference.size()),
        }
    )
    gains = gains.sort_values("users", ascending=False, kind="stable").reset_index(drop=True)
    return gains.rename_axis("group").reset_index()


def _band(axes: Axes, line: pd.DataFrame, variant: str, *, dashed: bool) -> None:
    line = line.sort_values("value")
    mean, std = 100 * line["mean"], 100 * line["std"].fillna(0.0)
    colour = VARIANT_COLOURS[variant]
    axes.plot(
        line.value,
        mean,
        color=colour,
        marker=VARIANT_MARKERS[variant],
        linestyle="--" if dashed else "-",
    )
    axes.fill_between(line.value, mean - std, mean + std, color=colour, alpha=0.2, linewidth=0)
