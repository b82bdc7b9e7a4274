"""Is one method better than another? Paired tests over users and over seeds, with intervals.

Two trials are a pair where data set and seed are the same; a user's value is the mean over the
seeds, so that a user counts once however many seeds there are. The primary test is the paired t
test over users: it is about the difference of means, which is what the tables show, and with the
hundreds of users of a study it agrees with the permutation test (Smucker et al., CIKM 2007; Urbano
et al., SIGIR 2019). Wilcoxon's test stands beside it; most users' differences are exactly 0, which
it handles by Pratt's rule. Both take the trained models as given. Whether the next seed would
show the same is another question: the paired t test over seeds answers it, with few of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from perpeft_ray import metrics
from perpeft_ray.config import PERSONAL_METHODS, SIMPLE_METHODS
from perpeft_ray.errors import InputError
from perpeft_ray.results.folder import StudyFolder
from perpeft_ray.results.summary import final_trials

_RESAMPLES = 2000
_PAIR = ["dataset", "seed"]


@dataclass(frozen=True)
class Comparison:
    """Method a against method b on the same users; metrics in [0, 1]."""

    method_a: str
    method_b: str
    variant: str | None
    metric: str
    mean_a: float
    mean_b: float
    difference: float
    """mean_a - mean_b."""
    interval: tuple[float, float]
    """95 % bootstrap interval of the difference, over users; unknown where mean_b is 0."""
    ratio: float
    """mean_a / mean_b; not a number where mean_b is 0."""
    ratio_interval: tuple[float, float]
    """95 % bootstrap interval of the ratio, over users."""
    p_value: float
    """Two-sided, of the primary test: paired t over users."""
    p_wilcoxon: float
    """Two-sided, of Wilcoxon's signed-rank test over users."""
    p_seeds: float
    """Two-sided, paired t over (data set, seed); not a number with fewer than two."""
    effect_size: float
    """Cohen's d of the users' differences: their mean by their standard deviation (ddof 1)."""
    users: int
    """Users compared; a user of two data sets is two users."""
    seeds: int
    """Pairs of trials, that is, of (data set, seed)."""


def compare_methods(
    folders: Sequence[Path],
    method_a: str,
    method_b: str,
    variant: str | None,
    metric: str = "ndcg@20",
) -> Comparison:
    """Compare two methods' test metrics over all seeds of one or several studies.

    `folders`: of studies; each study's own training mode is compared. `variant`: of both methods,
    ignored for methods without PEFT. `metric`: `hr@K` or `ndcg@K` for K in 10, 20, 30. Raises
    `InputError` where no data set and seed has both methods' trials.
    """
    trials = read_final_trials(folders)
    comparison = compare_trials(trials, method_a, method_b, variant, metric)
    if comparison is None:
        raise InputError(
            f"{method_a} and {method_b} ({variant}) must have a complete trial of the same data "
            f"set and seed, but there is none in {', '.join(map(str, folders))}"
        )
    return comparison


def compare_trials(
    trials: pd.DataFrame, method_a: str, method_b: str, variant: str | None, metric: str
) -> Comparison | None:
    """As `compare_methods`, on what `read_final_trials` gave; None where there is no pair."""
    values = paired_users(trials, method_a, method_b, variant, metric)
    return None if values.empty else compare_users(values, (method_a, method_b, variant), metric)


def compare_users(
    values: pd.DataFrame, names: tuple[str, str, str | None], metric: str
) -> Comparison:
    """Two methods on values of the same users, one row a user, data set and seed.

    `values`: columns dataset, seed, user_id, a, b. `names`: method a, method b and variant.
    """
    from scipy import stats

    of_seeds = values.groupby(_PAIR)[["a", "b"]].mean()
    of_users = values.groupby(["dataset", "user_id"])[["a", "b"]].mean()
    a, b = of_users.a.to_numpy(), of_users.b.to_numpy()
    differences = a - b
    spread = float(np.std(differences, ddof=1)) if len(a) > 1 else 0.0
    low, high = _bootstrap(a, b)
    return Comparison(
        *names,
        metric=metric,
        mean_a=float(a.mean()),
        mean_b=float(b.mean()),
        difference=float(differences.mean()),
        interval=(low[0], high[0]),
        ratio=_ratio(a.mean(), b.mean()),
        ratio_interval=(low[1], high[1]),
        p_value=float(stats.ttest_rel(a, b).pvalue) if spread else 1.0,
        p_wilcoxon=(
            float(stats.wilcoxon(differences, zero_method="pratt").pvalue) if spread else 1.0
        ),
        p_seeds=(
            float(stats.ttest_rel(of_seeds.a, of_seeds.b).pvalue)
            if len(of_seeds) > 1
            else float("nan")
        ),
        effect_size=float(differences.mean() / spread) if spread else 0.0,
        users=len(of_users),
        seeds=len(of_seeds),
    )


def paired_users(
    trials: pd.DataFrame, method_a: str, method_b: str, variant: str | None, metric: str
) -> pd.DataFrame:
    """The metric of each evaluated user under both methods, a row a user, data set and seed.

    Columns: dataset, seed, user_id, a, b, and group, the user's in a while testing (null for
    methods without groups).
    """
    pairs = _paired(trials, method_a, method_b, variant)
    frames = [
        _values_of_users(pair, metric).assign(dataset=pair.dataset, seed=pair.seed)
        for pair in pairs.itertuples()
    ]
    names = [*_PAIR, "user_id", "a", "b", "group"]
    return pd.concat(frames, ignore_index=True)[names] if frames else pd.DataFrame(columns=names)


def read_final_trials(folders: Sequence[Path]) -> pd.DataFrame:
    """The trials that a comparison is made of, with a column `folder` (Path).

    They are complete ones of the ablation; of a personal method, in its study's own mode.
    """
    frames = []
    if not folders:
        raise InputError("a comparison must have at least one study folder, but has none")
    for path in folders:
        folder = StudyFolder.open(Path(path))
        trials = final_trials(folder.trials())
        other_mode = trials.method.isin(PERSONAL_METHODS) & (trials["mode"] != folder.config.mode)
        frames.append(trials[~other_mode].assign(folder=folder.path))
    return pd.concat(frames, ignore_index=True)


def user_metric(ranks: NDArray[np.floating], metric: str) -> NDArray[np.float64]:
    """HR@K or NDCG@K of each user from 0-based ranks [users]; `metric` is such as `ndcg@20`."""
    name, _, cutoff = metric.partition("@")
    functions = {"hr": metrics.hit, "ndcg": metrics.ndcg}
    if name not in functions or cutoff not in map(str, metrics.CUTOFFS):
        allowed = ", ".join(f"{name}@{k}" for name in functions for k in metrics.CUTOFFS)
        raise InputError(f"`metric` must be one of {allowed}, but is {metric}")
    return functions[name](ranks.astype(np.int64), int(cutoff))


def holm(p_values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Holm's adjusted p values of a family, in the order given; [n] -> [n].

    Source: Holm, Scandinavian Journal of Statistics 6 (1979).
    """
    order = np.argsort(p_values, kind="stable")
    steps = np.arange(len(p_values), 0, -1)
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(np.maximum.accumulate(steps * p_values[order]), 1.0)
    return adjusted


def _paired(
    trials: pd.DataFrame, method_a: str, method_b: str, variant: str | None
) -> pd.DataFrame:
    """Trials of a and b side by side; columns dataset, seed, folder_a, trial_id_a, …"""
    sides = []
    for method in (method_a, method_b):
        has_variant = trials.variant.isna() | (trials.variant == variant)
        rows = trials[(trials.method == method) & has_variant]
        rows = rows.sort_values("finished_at").drop_duplicates(_PAIR, keep="last")
        sides.append(rows[[*_PAIR, "folder", "trial_id"]])
    a, b = sides
    if method_a in SIMPLE_METHODS:  # the same with every seed
        a = a.drop(columns="seed")
    elif method_b in SIMPLE_METHODS:
        b = b.drop(columns="seed")
    keys = [name for name in _PAIR if name in a and name in b]
    return a.merge(b, on=keys, suffixes=("_a", "_b"))


def _values_of_users(pair: Any, metric: str) -> pd.DataFrame:
    """The metric of each evaluated user under both trials; columns user_id, a, b, group."""
    a, b = (
        StudyFolder(folder).users_of(trial_id).dropna(subset="test_rank").set_index("user_id")
        for folder, trial_id in ((pair.folder_a, pair.trial_id_a), (pair.folder_b, pair.trial_id_b))
    )
    ranks = pd.concat({"a": a.test_rank, "b": b.test_rank}, axis=1, join="inner")
    values = ranks.apply(lambda column: user_metric(column.to_numpy(), metric))
    return values.assign(group=a.test_group).reset_index()


def _bootstrap(a: NDArray[np.float64], b: NDArray[np.float64]) -> tuple[list[float], list[float]]:
    """Low and high ends of the 95 % percentile intervals of (difference, ratio) of means.

    Not numbers with fewer than two users or where b is 0 for all, so that no ratio exists.
    """
    from scipy import stats

    def both(x: NDArray[np.float64], y: NDArray[np.float64], axis: int = -1) -> NDArray[np.float64]:
        means = x.mean(axis=axis), y.mean(axis=axis)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.stack([means[0] - means[1], means[0] / means[1]])

    if len(a) < 2 or not b.any():
        return [float("nan")] * 2, [float("nan")] * 2
    result = stats.bootstrap(
        (a, b),
        both,
        paired=True,
        vectorized=True,
        n_resamples=_RESAMPLES,
        batch=100,
        method="percentile",
        rng=np.random.default_rng(0),
    )
    return result.confidence_interval.low.tolist(), result.confidence_interval.high.tolist()


def _ratio(a: float, b: float) -> float:
    return float(a / b) if b else float("nan")
