"""Is one method better than another? Paired tests over users and over seeds, with intervals.

Two trials form a pair if data set and seed are the same; a user's value is the mean over seeds, so
that a user counts once whatever the number of seeds. The primary test is the paired t test over
users: it tests the difference of means, which the tables show, and agrees with the permutation test
for a study's hundreds of users (Smucker et al., CIKM 2007; Urbano et al., SIGIR 2019). It takes the
trained models as given. The paired t test over seeds asks whether the next seed would show the
same, from few seeds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from perpeft_ray import metrics
from perpeft_ray.config import METHODS, SIMPLE_METHODS, VARIANTS
from perpeft_ray.errors import InputError
from perpeft_ray.report.summary import CELL, final_trials
from perpeft_ray.store.folder import StudyFolder

LEVEL = 0.05
"""Significance level of corrected tests."""
_RESAMPLES = 2000
_BLOCK_VALUES = 2**22
"""Values resampled at once: 32 MiB for each sample, and as much for their places."""
_ROUNDING = 1e-12
"""Equal differences of metrics vary by less, from rounding."""
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
    """95 % bootstrap interval of the difference, over users; not a number for one user."""
    ratio: float
    """mean_a / mean_b; not a number if mean_b is 0."""
    ratio_interval: tuple[float, float]
    """95 % bootstrap interval of the ratio, over users; not a number if so few users have a value
    above 0 that a resample has none, whose ratio is no number."""
    p_value: float
    """Two-sided p value of the primary test, paired t over users."""
    p_seeds: float
    """Two-sided p value of paired t over (data set, seed); not a number with fewer than two."""
    deviation: float
    """Standard deviation (ddof 1) of the users' differences, which are means over seeds."""
    seed_deviation: float
    """Standard deviation of one user's difference from seed to seed, pooled over users; not a
    number with one seed."""
    effect_size: float
    """Cohen's d of the users' differences: mean divided by standard deviation (ddof 1)."""
    users: int
    """Users compared; a user of two data sets is two users."""
    seeds: int
    """Pairs of trials, that is, of (data set, seed)."""
    p_holm: float = math.nan
    """`p_value`, corrected for its family of comparisons (`compare_all`)."""
    p_seeds_holm: float = math.nan
    """`p_seeds`, corrected in the same way."""

    @property
    def significant(self) -> bool:
        """Whether the corrected primary test finds a difference."""
        return self.p_holm < LEVEL


def compare(
    values: pd.DataFrame, method_a: str, method_b: str, variant: str | None, metric: str
) -> Comparison | None:
    """Compare two methods on `user_values`; None if no data set and seed has both."""
    pairs = paired_users(values, method_a, method_b, variant)
    return None if pairs.empty else compare_users(pairs, (method_a, method_b, variant), metric)


def compare_all(values: pd.DataFrame) -> list[Comparison]:
    """NDCG@20 of PerPEFT with every other method, then of every other one with `global`.

    `values`: of `user_values`; methods without a variant appear under every one. Holm corrects p
    values over PerPEFT's comparisons and, separately, over the others.
    """
    others = [method for method in METHODS if method != "perpeft"]
    families = (
        [("perpeft", method) for method in others],
        [(method, "global") for method in others if method != "global"],
    )
    there = set(values.variant.dropna())
    corrected = []
    for pairs in families:
        found = [
            comparison
            for variant in VARIANTS
            if variant in there
            for a, b in pairs
            if (comparison := compare(values, a, b, variant, "ndcg@20")) is not None
        ]
        p_holm, p_seeds_holm = (
            holm(np.array([getattr(comparison, name) for comparison in found]))
            for name in ("p_value", "p_seeds")
        )
        corrected += [
            replace(comparison, p_holm=float(p), p_seeds_holm=float(p_seeds))
            for comparison, p, p_seeds in zip(found, p_holm, p_seeds_holm, strict=True)
        ]
    return corrected


def compare_users(
    values: pd.DataFrame, names: tuple[str, str, str | None], metric: str
) -> Comparison:
    """Compare two methods on the same users, one row per user, data set and seed.

    `values`: columns dataset, seed, user_id, a, b. `names`: method a, method b and variant.
    """
    users = [values.dataset, values.user_id]
    of_seeds = values.groupby(_PAIR)[["a", "b"]].mean()
    of_users = values.groupby(users)[["a", "b"]].mean()
    a, b = of_users.a.to_numpy(), of_users.b.to_numpy()
    differences = a - b
    spread = _spread(differences)
    interval = ratio_interval = math.nan, math.nan
    if len(a) > 1:
        of_a, of_b = _resampled_means(a, b)
        interval = _middle(of_a - of_b)
        if of_a.all() and of_b.all():
            ratio_interval = _middle(of_a / of_b)
    return Comparison(
        *names,
        metric=metric,
        mean_a=float(a.mean()),
        mean_b=float(b.mean()),
        difference=float(differences.mean()),
        interval=interval,
        ratio=float(a.mean() / b.mean()) if b.any() else math.nan,
        ratio_interval=ratio_interval,
        p_value=_p_value(differences),
        p_seeds=(_p_value((of_seeds.a - of_seeds.b).to_numpy()) if len(of_seeds) > 1 else math.nan),
        deviation=spread,
        seed_deviation=float(np.sqrt((values.a - values.b).groupby(users).var(ddof=1).mean())),
        effect_size=float(differences.mean() / spread) if spread else 0.0,
        users=len(of_users),
        seeds=len(of_seeds),
    )


def paired_users(
    values: pd.DataFrame, method_a: str, method_b: str, variant: str | None
) -> pd.DataFrame:
    """Each user's values under both methods, one row per user, data set and seed.

    `values`: of `user_values`. Columns: dataset, seed, user_id, a, b, and group, the user's in a
    while testing (null for methods without groups). A method that has no seeds is paired with all.
    """
    sides = []
    for method in (method_a, method_b):
        has_variant = values.variant.isna() | (values.variant == variant)
        rows = values[(values.method == method) & has_variant]
        sides.append(rows[[*_PAIR, "user_id", "value", "group"]])
    a, b = sides[0], sides[1].drop(columns="group")
    if method_a in SIMPLE_METHODS:
        a = a.drop(columns="seed")
    elif method_b in SIMPLE_METHODS:
        b = b.drop(columns="seed")
    keys = [name for name in (*_PAIR, "user_id") if name in a and name in b]
    pairs = a.merge(b, on=keys, suffixes=("_a", "_b"))
    pairs = pairs.rename(columns={"value_a": "a", "value_b": "b"})
    return pairs.reindex(columns=[*_PAIR, "user_id", "a", "b", "group"])


def first_pairs(values: pd.DataFrame, variant: str) -> pd.DataFrame:
    """`paired_users` of PerPEFT and `global` with a variant, in their first shared seed."""
    pairs = paired_users(values, "perpeft", "global", variant)
    return pairs[pairs.seed == pairs.seed.min()]


def final_users(trials: pd.DataFrame, users: pd.DataFrame) -> pd.DataFrame:
    """The evaluated users of every final trial.

    `trials`, `users`: of `read_results`. Columns: dataset, encoder, method, variant, seed, user_id,
    test_rank, group (while testing), and other columns of `users`.
    """
    cells = ["trial_id", "dataset", "encoder", *CELL, "seed"]
    evaluated = users[users.test_rank.notna()].drop(columns="group")
    evaluated = evaluated.merge(final_trials(trials)[cells], on="trial_id")
    return evaluated.rename(columns={"test_group": "group"}).drop(columns="trial_id")


def user_values(trials: pd.DataFrame, users: pd.DataFrame, metric: str = "ndcg@20") -> pd.DataFrame:
    """`final_users` with a column value: the metric."""
    values = final_users(trials, users)
    return values.assign(value=user_metric(values.test_rank.to_numpy(np.int64), metric))


def user_means(
    users: pd.DataFrame, metric_names: Sequence[str], by: Sequence[str] = ()
) -> pd.DataFrame:
    """Means over users; each counts with the mean over seeds.

    `users`: of `final_users`. Columns: method, variant, `by`, metric, mean, error (the standard
    error of the mean), users, seeds; one metric after the other.
    """
    keys = [*CELL, *by]
    ranks = users.test_rank.to_numpy(np.int64)
    values = users.assign(**{name: user_metric(ranks, name) for name in metric_names})
    of_users = values.groupby([*keys, "user_id"], dropna=False)[[*metric_names]].mean()
    seeds = values.groupby(keys, dropna=False)["seed"].nunique()
    found = []
    for name in metric_names:
        of_metric = of_users[name].groupby(keys, dropna=False)
        means = of_metric.agg(mean="mean", error="sem", users="size")
        found.append(means.assign(seeds=seeds).reset_index().assign(metric=name))
    return pd.concat(found, ignore_index=True)


def read_results(studies: Sequence[StudyFolder]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """All trials of some studies, and the users of their final trials."""
    if not studies:
        raise InputError("a comparison must have at least one study folder, but has none")
    trials = [study.trials() for study in studies]
    users = [
        study.users_of(*final_trials(own).trial_id)
        for study, own in zip(studies, trials, strict=True)
    ]
    both = pd.concat(users, ignore_index=True)
    once = both.drop_duplicates(["trial_id", "user_id"], keep="last")  # a trial in two studies
    return pd.concat(trials, ignore_index=True), once


def user_metric(ranks: NDArray[np.number], metric: str) -> NDArray[np.float64]:
    """A metric of each user from 0-based ranks [users]; `metric` is such as `ndcg@20`."""
    name, _, cutoff = metric.partition("@")
    if name not in metrics.OF_RANKS or not cutoff.isdecimal() or int(cutoff) < 1:
        allowed = ", ".join(f"{name}@K" for name in metrics.OF_RANKS)
        raise InputError(f"`metric` must be one of {allowed} with K at least 1, but is {metric}")
    return metrics.OF_RANKS[name](ranks.astype(np.int64), int(cutoff))


def holm(p_values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Holm's adjusted p values of a family, in the given order; [n] -> [n].

    NaNs stay NaN and do not count. Source: Holm, Scandinavian Journal of
    Statistics 6 (1979).
    """
    adjusted = np.full(len(p_values), np.nan)
    known = np.flatnonzero(~np.isnan(p_values))
    order = known[np.argsort(p_values[known], kind="stable")]
    steps = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps * p_values[order]), 1.0)
    return adjusted


def group_gains(pairs: pd.DataFrame) -> pd.DataFrame:
    """Size and gain of each group.

    `pairs`: of `first_pairs`. Columns: group, users, a and b (means), gain (mean of
    a - b), gain_low and gain_high (its 95 % bootstrap interval over the group's users).
    """
    rows = [
        (int(group), len(own), own.a.mean(), own.b.mean(), *mean_and_interval(difference))
        for group, own in pairs.groupby("group")
        for difference in [(own.a - own.b).to_numpy()]
    ]
    return pd.DataFrame(rows, columns=["group", "users", "a", "b", "gain", "gain_low", "gain_high"])


def mean_and_interval(values: NDArray[np.float64]) -> tuple[float, float, float]:
    """Mean and its 95 % bootstrap percentile interval; only the mean if all values are equal."""
    mean = float(values.mean())
    if len(values) < 2 or values.min() == values.max():
        return mean, mean, mean
    return mean, *_middle(_resampled_means(values)[0])


def _spread(values: NDArray[np.float64]) -> float:
    """Standard deviation (ddof 1); 0 for one value, and for equal ones but for rounding."""
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return spread if spread > _ROUNDING else 0.0


def _p_value(differences: NDArray[np.float64]) -> float:
    """Of the two-sided paired t test; 1 if the differences do not vary."""
    from scipy import stats

    return float(stats.ttest_1samp(differences, 0.0).pvalue) if _spread(differences) else 1.0


def _resampled_means(*samples: NDArray[np.float64]) -> NDArray[np.float64]:
    """Means of paired samples over the same resampled users: [samples, resamples]."""
    from scipy import stats

    return stats.bootstrap(  # type: ignore[no-any-return]  # scipy is untyped
        samples,
        lambda *resampled, axis: np.stack([sample.mean(axis=axis) for sample in resampled]),
        paired=True,
        vectorized=True,
        n_resamples=_RESAMPLES,
        batch=min(100, max(1, _BLOCK_VALUES // len(samples[0]))),
        method="percentile",
        rng=np.random.default_rng(0),
    ).bootstrap_distribution


def _middle(values: NDArray[np.float64]) -> tuple[float, float]:
    """The ends of the middle 95 % of bootstrapped values."""
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)
