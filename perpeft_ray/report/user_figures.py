"""The map of the users: what K-means saw of them, in two dimensions."""

from __future__ import annotations

import pandas as pd
from matplotlib import colormaps

from perpeft_ray.report.drawing import StudyFigure, panels
from perpeft_ray.report.summary import final_trials

_TEN = colormaps["tab10"]
_TWENTY = colormaps["tab20"]


def user_map(trials: pd.DataFrame, all_users: pd.DataFrame) -> StudyFigure | None:
    """Each user by the first two principal components of what was grouped, coloured by group.

    `trials`, `all_users`: of `read_results`. One panel per variant, of PerPEFT's first seed.
    None where no such trial has ended.
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
        colours = _TEN if len(sizes) <= 10 else _TWENTY
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
        "first two principal components; a colour and number a group, numbered from the largest. "
        "First seed of each variant.",
        figure,
    )
