"""How many users or seeds a paired comparison needs: power of the t test over users.

A user's difference between two methods has a part of its own, which more seeds do not change, and
noise of the trained models, which they average out: the variance of a user's mean over S seeds is
between² + within² / S.
"""

from __future__ import annotations

import math

import pandas as pd

from perpeft_ray.report.statistics import LEVEL, Comparison
from perpeft_ray.report.text import MISSING, TextTable

POWER = 0.8
"""Planned probability of a significant result."""


def users_needed(effect: float, deviation: float, alpha: float = LEVEL) -> float:
    """Number of users that gives a two-sided paired t test at level `alpha` a power of 0.8.

    `effect`: the true mean difference; `deviation`: the standard deviation of users' differences.
    Infinite for no effect. Source: Guenther, The American Statistician 35 (1981).
    """
    if not effect or math.isnan(effect):
        return math.inf
    significant, _ = _quantiles(alpha)
    return math.ceil((_reach(alpha) * deviation / effect) ** 2 + significant**2 / 2)


def seeds_needed(comparison: Comparison, effect: float, alpha: float = LEVEL) -> float:
    """Number of seeds with which the same users would show `effect` with a power of 0.8.

    Infinite if no number would. One seed cannot separate training noise from the user's own part;
    the result then treats all as noise and is a lower bound.
    """
    users, seeds = comparison.users, comparison.seeds
    total = comparison.deviation**2
    within = comparison.seed_deviation**2 if seeds > 1 else total
    between = max(total - within / seeds, 0.0)
    significant, _ = _quantiles(alpha)
    room = (users - significant**2 / 2) * (effect / _reach(alpha)) ** 2 - between
    return math.ceil(within / room) if room > 0 else math.inf


def smallest_effect(users: int, deviation: float, alpha: float = LEVEL) -> float:
    """The difference that a study of this many users would show with a power of 0.8.

    `deviation` as in `users_needed`.
    """
    significant, _ = _quantiles(alpha)
    return _reach(alpha) * deviation / math.sqrt(max(users - significant**2 / 2, 1.0))


def power_table(compared: list[Comparison], effect: float) -> TextTable:
    """Users and seeds that a relative effect over `global` needs, per variant.

    `compared`: PerPEFT with `global`, one per variant.
    """
    alpha = LEVEL / max(len(compared), 1)
    rows = []
    for row in compared:
        absolute = effect * row.mean_b
        smallest = smallest_effect(row.users, row.deviation, alpha)
        least = "≥ " if row.seeds == 1 else ""
        rows.append(
            {
                "variant": row.variant or MISSING,
                "observed": MISSING if math.isnan(row.ratio) else f"{100 * (row.ratio - 1):+.0f} %",
                "users": f"{row.users:,}",
                "seeds": f"{row.seeds}",
                "shows": f"{100 * smallest / row.mean_b:.0f} %" if row.mean_b else MISSING,
                "users needed": rounded(users_needed(absolute, row.deviation, alpha)),
                "seeds needed": least + rounded(seeds_needed(row, absolute, alpha)),
            }
        )
    return TextTable(
        f"What shows an effect of {100 * effect:g} % in NDCG@20 over global",
        pd.DataFrame(rows),
        f"shows: the smallest effect for which these users and seeds have a power of {POWER:.0%}. "
        "Users needed with these seeds, seeds needed with these users; paired t over users at "
        f"{LEVEL:g} / {max(len(compared), 1)} comparisons. From one seed, only the least number of "
        "seeds is known.",
    )


def rounded(count: float) -> str:
    """A number of users or seeds, rounded up to two digits; `no number` if infinite."""
    if math.isinf(count):
        return "no number"
    step = 10 ** max(len(str(int(count))) - 2, 0)
    return f"{math.ceil(count / step) * step:,}"


def _reach(alpha: float) -> float:
    """The effect, in standard errors, that has a power of 0.8."""
    return sum(_quantiles(alpha))


def _quantiles(alpha: float) -> tuple[float, float]:
    from scipy import stats

    return float(stats.norm.ppf(1 - alpha / 2)), float(stats.norm.ppf(POWER))
