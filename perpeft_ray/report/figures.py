"""The figures of a study, and their files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from perpeft_ray.config import METHODS, SEARCHABLE, VARIANTS, VARIED
from perpeft_ray.metrics import on_front
from perpeft_ray.report.drawing import (
    BLACK,
    GREY,
    METHOD_LOOKS,
    VARIANT_LOOKS,
    StudyFigure,
    legend,
    panels,
)
from perpeft_ray.report.statistics import Comparison, first_pairs, group_gains, user_values
from perpeft_ray.report.summary import (
    CELL,
    SELECTION,
    ablation_summary,
    costs,
    final_trials,
    labels,
    sensitivity,
)
from perpeft_ray.report.tables import StudyResults
from perpeft_ray.store.files import whole_file

_SETTINGS = ("variant", *VARIED)
_LABELS = {setting.name: setting.label for setting in SEARCHABLE}


def study_figures(results: StudyResults) -> list[StudyFigure]:
    """All figures that the trials so far allow."""
    trials, users, epochs = results.trials, results.users, results.folder.epochs()
    figures = (
        effects(results.compared),
        learning_curves(trials, epochs),
        parameter_importance(trials),
        search_history(trials, epochs),
        search_front(trials) if results.study.search.pareto else None,
        sensitivity_curves(trials),
        accuracy_against_parameters(trials),
        groups_and_gains(user_values(trials, users)),
        user_map(trials, users),
    )
    return [figure for figure in figures if figure is not None]


def write_figures(results: StudyResults) -> dict[StudyFigure, Path]:
    """Write `figures/<name>.png` of a study; returns the figures with their files."""
    files = {f: results.folder.path / "figures" / f"{f.name}.png" for f in study_figures(results)}
    for figure, file in files.items():
        with whole_file(file) as temporary:
            figure.figure.savefig(temporary, format="png")
    return files


def effects(compared: Sequence[Comparison]) -> StudyFigure | None:
    """PerPEFT's test NDCG@20 minus that of every other method, with intervals."""
    own = [c for c in compared if c.method_a == "perpeft" and np.isfinite(c.interval).all()]
    if not own:
        return None
    methods = [str(method) for method in METHODS if any(c.method_b == method for c in own)]
    variants = list(dict.fromkeys(c.variant for c in own))
    figure, [axes] = panels(1, height=0.8 + 0.14 * len(methods) * (len(variants) + 1))
    for c in own:
        shift = 0.7 * (variants.index(c.variant) - (len(variants) - 1) / 2) / len(variants)
        low, high = (abs(100 * (end - c.difference)) for end in c.interval)
        axes.errorbar(
            100 * c.difference,
            methods.index(c.method_b) + shift,
            xerr=[[low], [high]],
            **VARIANT_LOOKS[c.variant],
            markerfacecolor=None if c.significant else "white",
            markersize=5,
            linestyle="none",
            capsize=2,
        )
    for variant in variants:
        axes.plot([], [], **VARIANT_LOOKS[variant], markersize=5, label=variant)
    axes.axvline(0, color=BLACK, linewidth=0.8)
    axes.set_yticks(range(len(methods)), methods)
    axes.invert_yaxis()
    axes.set_xlabel("gain in NDCG@20 × 100")
    legend(figure, columns=3)
    return StudyFigure(
        "effects",
        "PerPEFT's gain over each method",
        "Difference in test NDCG@20 × 100 with its uncorrected 95 % bootstrap interval over "
        "users; filled if significant (paired t, Holm-corrected, p < 0.05).",
        figure,
    )


def learning_curves(trials: pd.DataFrame, epochs: pd.DataFrame) -> StudyFigure | None:
    """Validation NDCG@20 of the compared trials by epoch, one panel per variant."""
    final = final_trials(trials)
    validated = epochs[epochs.valid_ndcg_at_20.notna()]
    curves = validated.merge(final[["trial_id", "method", "variant"]], on="trial_id")
    if curves.empty:
        return None
    variants: list[str | None] = [v for v in VARIANTS if (curves.variant == v).any()]
    variants = variants or [None]
    figure, places = panels(len(variants))
    styles = {"without_mm": ":", "frozen_mm": "--"}
    for axes, variant in zip(places, variants, strict=True):
        own = curves[(curves.variant == variant) | curves.variant.isna()]
        for method, line in own.groupby("method"):
            mean = 100 * line.groupby("epoch").valid_ndcg_at_20.mean()
            axes.plot(
                mean.index,
                mean,
                **METHOD_LOOKS[method],
                linestyle=styles.get(method, "-"),
                markersize=4,
                linewidth=2 if method == "perpeft" else 1,
                label=method,
            )
        axes.set(title=variant or "", ylabel="validation NDCG@20 × 100")
    places[-1].set_xlabel("epoch")
    legend(figure)
    return StudyFigure(
        "learning_curves",
        "Learning curves",
        "Validation NDCG@20 × 100 by epoch, means over seeds. A curve that still rises at its end "
        "needs more epochs.",
        figure,
    )


def accuracy_against_parameters(trials: pd.DataFrame) -> StudyFigure | None:
    """Mean test NDCG@20 against trainable parameters, and the Pareto front."""
    summary = ablation_summary(trials)
    points = summary[summary.metric == "ndcg_at_20"].merge(costs(trials), on=CELL)
    if points.empty:
        return None
    figure, [axes] = panels(1, height=2.8)
    positive = points.trainable_parameters[points.trainable_parameters > 0]
    if len(positive):
        below = 10.0 ** np.floor(np.log10(positive.min()))
        axes.set_xscale("symlog", linthresh=below, linscale=0.6)
    for row in points.itertuples():
        colour = VARIANT_LOOKS[None if pd.isna(row.variant) else row.variant]["color"]
        axes.errorbar(
            row.trainable_parameters,
            100 * row.mean,
            yerr=None if pd.isna(row.std) else 100 * row.std,
            color=colour,
            marker=METHOD_LOOKS[row.method]["marker"],
            linestyle="none",
            capsize=2,
        )
    for variant in points.variant.dropna().unique():
        colour = VARIANT_LOOKS[variant]["color"]
        axes.plot([], [], color=colour, linewidth=5, label=variant)
    for method in points.method.unique():
        axes.plot([], [], METHOD_LOOKS[method]["marker"], color=GREY, label=method)
    front = _front(axes, points, "mean")
    axes.set(xlabel="trainable parameters of PEFT modules", ylabel="test NDCG@20 × 100")
    legend(figure)
    return StudyFigure(
        "accuracy_against_parameters",
        "Accuracy against trainable parameters",
        "Means over seeds, bars are one standard deviation. On the Pareto front: "
        f"{', '.join(labels(front))}.",
        figure,
    )


def sensitivity_curves(trials: pd.DataFrame) -> StudyFigure | None:
    """Test NDCG@20 against each setting that the study varies; None if it varies none."""
    curves = sensitivity(trials)
    names = list(dict.fromkeys(curves.parameter))
    if not names:
        return None
    figure, places = panels(len(names))
    for axes, name in zip(places, names, strict=True):
        of_name = curves[curves.parameter == name]
        for variant, line in of_name.groupby("variant"):
            look, line = VARIANT_LOOKS[variant], line.sort_values("value")
            mean, std = 100 * line["mean"], 100 * line["std"].fillna(0.0)
            axes.plot(line.value, mean, **look, label=variant)
            ends = mean - std, mean + std
            axes.fill_between(line.value, *ends, color=look["color"], alpha=0.2, linewidth=0)
        setting = next(setting for setting in SEARCHABLE if setting.name == name)
        if setting.scale:
            axes.set_xscale("log", base=setting.scale)
        values = sorted(of_name.value.unique())
        axes.set_xticks(values, [f"{value:g}" for value in values])
        axes.minorticks_off()
        axes.set(xlabel=setting.label, ylabel="test NDCG@20 × 100")
    legend(figure, columns=3)
    return StudyFigure(
        "sensitivity",
        "Sensitivity of PerPEFT",
        "Means over seeds; bands are one standard deviation. The other settings are fixed.",
        figure,
    )


def groups_and_gains(values: pd.DataFrame) -> StudyFigure | None:
    """PerPEFT's gain over `global` in each group, for each variant's first seed.

    `values`: of `user_values`. None if no variant has both methods.
    """
    pairs = {v: users for v in VARIANTS if len(users := first_pairs(values, v))}
    if not pairs:
        return None
    figure, places = panels(len(pairs))
    for axes, (variant, users) in zip(places, pairs.items(), strict=True):
        gains = group_gains(users)
        ends = [gains.gain - gains.gain_low, gains.gain_high - gains.gain]
        axes.bar(
            gains.group.astype(str) + "\n" + gains.users.astype(str),
            100 * gains.gain,
            yerr=100 * np.array(ends),
            color=VARIANT_LOOKS[variant]["color"],
            ecolor=BLACK,
            capsize=2,
        )
        axes.axhline(0, color=BLACK, linewidth=0.8)
        axes.set(title=variant, ylabel="gain in NDCG@20 × 100")
    places[-1].set_xlabel("group, and its users")
    return StudyFigure(
        "groups",
        "Gain of each group",
        "PerPEFT's test NDCG@20 minus that of the global module for the same users, with its 95 % "
        "bootstrap interval. First seed of each variant.",
        figure,
    )


def search_history(trials: pd.DataFrame, epochs: pd.DataFrame) -> StudyFigure | None:
    """The search's trials in order of their start, and the best so far.

    A pruned trial is drawn at its best validation. None without a finished trial.
    """
    tried = _tried(trials)
    if tried.empty:
        return None
    reached = epochs.groupby("trial_id")["best_valid_ndcg_at_20"].max()
    tried["score"] = 100 * tried[SELECTION].fillna(tried.trial_id.map(reached))
    figure, [axes] = panels(1)
    for variant, rows in tried.groupby("variant"):
        done, pruned = (rows[rows.status == status] for status in ("COMPLETE", "PRUNED"))
        look = VARIANT_LOOKS[variant]
        axes.scatter(done.number, done.score, **look, label=variant)
        axes.scatter(pruned.number, pruned.score, color=look["color"], marker="x")
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

    None if all trials have the same size.
    """
    done = _complete(trials)
    if done.trainable_parameters.nunique() < 2:
        return None
    figure, [axes] = panels(1)
    for variant, rows in done.groupby("variant"):
        sizes, scores = rows.trainable_parameters, 100 * rows[SELECTION]
        axes.scatter(sizes, scores, **VARIANT_LOOKS[variant], label=variant)
    front = _front(axes, done, SELECTION)
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

    None without more complete trials than varied settings: anything would explain them.
    """
    from perpeft_ray.study.search import setting_importances

    done = _complete(trials)
    if len(done) <= sum(done[name].nunique(dropna=False) > 1 for name in _SETTINGS):
        return None
    settings = done[list(_SETTINGS)].astype(object)
    settings = settings.where(settings.notna(), None).to_dict("records")
    shares = setting_importances(settings, done[SELECTION].tolist())
    if not shares:
        return None
    names = list(reversed(shares))
    figure, [axes] = panels(1, height=0.6 + 0.3 * len(names))
    bars = axes.barh(
        [_LABELS.get(name, name) for name in names],
        [100 * shares[name] for name in names],
        color=VARIANT_LOOKS["lora"]["color"],
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


def user_map(trials: pd.DataFrame, all_users: pd.DataFrame) -> StudyFigure | None:
    """Each user by the first two principal components of the grouped states, coloured by group.

    `trials`, `all_users`: of `read_results`. One panel per variant, of PerPEFT's first seed.
    None without such a trial.
    """
    final = final_trials(trials)
    firsts = final[final.method == "perpeft"].sort_values("seed").drop_duplicates("variant")
    if firsts.empty:
        return None
    figure, places = panels(len(firsts))
    for axes, trial in zip(places, firsts.itertuples(), strict=True):
        own_users = all_users[all_users.trial_id == trial.trial_id]
        users = own_users.dropna(subset=["group", "map_x"])
        sizes = users.group.value_counts()
        colours = colormaps["tab10" if len(sizes) <= 10 else "tab20"]
        for number, group in enumerate(sizes.index):
            own = users[users.group == group]
            axes.scatter(own.map_x, own.map_y, s=4, alpha=0.5, color=colours(number % colours.N))
        for number, group in enumerate(sizes.index):  # above the points
            own = users[users.group == group]
            axes.annotate(
                f"{number}",
                (own.map_x.mean(), own.map_y.mean()),
                ha="center",
                va="center",
                fontweight="bold",
                bbox={"boxstyle": "circle", "facecolor": "white", "alpha": 0.8, "linewidth": 0.5},
            )
        axes.set(title=trial.variant, xlabel="first component", ylabel="second component")
    return StudyFigure(
        "user_map",
        "Users and their groups",
        "SASRec's outputs for the users under the global module, which K-means grouped, by their "
        "first two principal components; one colour and number per group, from the largest on. "
        "First seed of each variant.",
        figure,
    )


def _front(axes: Axes, points: pd.DataFrame, score: str) -> pd.DataFrame:
    """Draw the Pareto front of the points; returns its rows, smallest first."""
    front = points[on_front(points.trainable_parameters, points[score])]
    front = front.sort_values("trainable_parameters")
    sizes, scores = front.trainable_parameters, 100 * front[score]
    axes.step(sizes, scores, where="post", color=GREY, zorder=1, label="Pareto front")
    return front


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
