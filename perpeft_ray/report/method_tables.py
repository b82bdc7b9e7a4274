"""Tables of the compared methods: the study's main table, tests, other metrics, slices of users."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import PurePosixPath

import pandas as pd

from perpeft_ray.config import METHODS, PEFT_METHODS, VECTOR_METHODS, StudyConfig
from perpeft_ray.metrics import OF_RANKS
from perpeft_ray.report.statistics import LEVEL, Comparison, final_users, user_means
from perpeft_ray.report.summary import (
    CELL,
    METRICS,
    ablation_summary,
    final_trials,
    in_paper_order,
    labels,
)
from perpeft_ray.report.text import (
    StudyTable,
    TextTable,
    p_text,
    shown,
    with_error,
    with_interval,
)

MARK = "*"
_SLICES = {
    "test_item_occurrences": "how often the test item occurs in training",
    "history_length": "how many items of the user are known",
}


def ablation_table(
    trials: pd.DataFrame,
    users: pd.DataFrame,
    study: StudyConfig,
    compared: Sequence[Comparison],
) -> StudyTable:
    """The methods of a study; prints NDCG@20 and HR@20.

    `trials`, `users`: of `read_results`; `compared`: of `compare_all`, whose methods that are
    significantly better than `global` are marked. The numbers are those of `ablation_summary` with
    the column `error`, the standard error over users of each mean.
    """
    names = {name.replace("_at_", "@"): name for name in METRICS}
    errors = user_means(final_users(trials, users), list(names))[[*CELL, "metric", "error"]]
    errors["metric"] = errors.metric.map(names)
    summary = ablation_summary(trials).merge(errors, on=[*CELL, "metric"], how="left")
    better = {
        (c.method_a, c.variant)
        for c in compared
        if c.method_b == "global" and c.significant and c.difference > 0
    }
    ndcg, hits = (summary[summary.metric == name] for name in ("ndcg_at_20", "hr_at_20"))
    texts = _of_metric(ndcg, study, "NDCG@20", better), _of_metric(hits, study, "HR@20", set())
    return StudyTable("ablation_peft", summary, texts)


def _of_metric(
    summary: pd.DataFrame, study: StudyConfig, metric: str, marks: set[tuple[str, str | None]]
) -> TextTable:
    """One metric, one row per method and column per variant, within 80 characters."""
    # Planned and existing rows, in the paper's order.
    methods = sorted({*study.methods, *summary.method}, key=METHODS.index)
    found = summary.assign(variant=summary.variant.fillna("")).set_index(CELL)
    columns: dict[str, list[str]] = {"method": methods}
    best = {}
    for variant in study.values("variant"):
        keys = [(method, variant) for method in methods]
        cells = found.reindex([key if key in found.index else (key[0], "") for key in keys])
        texts = with_error(cells["mean"], cells.error)
        columns[variant] = [
            text + MARK if key in marks else text for text, key in zip(texts, keys, strict=True)
        ]
        best[variant] = cells["mean"] == cells["mean"].max()
    _, _, path = study.dataset.partition(":")
    name = PurePosixPath(path).name if "/" in path else study.dataset
    seeds = _span(summary[summary.method.isin(PEFT_METHODS)].seeds, " to ")
    caption = "mean ± standard error over users"
    caption += f"; seeds: {seeds}" * bool(seeds) + "; bold: best of the column"
    if marks:
        caption += f"; {MARK} better than global, p < 0.05 (Holm)"
    if VECTOR_METHODS & set(summary.method):
        caption += "; user_level and group_level are our reading of the paper's rows"
    return TextTable(f"Test {metric} × 100 on {name}", columns, f"{caption}.", best)


def comparisons_table(compared: Sequence[Comparison]) -> StudyTable:
    """The results of `compare_all`, one row each; prints PerPEFT's, one table per variant.

    Columns of the numbers: the fields of `Comparison`, with intervals as `…_low` and `…_high`.
    """
    names = [field.name for field in fields(Comparison)]
    numbers = pd.DataFrame([asdict(comparison) for comparison in compared], columns=names)
    for name in ("interval", "ratio_interval"):
        ends = numbers.pop(name)
        numbers[f"{name}_low"] = ends.str[0].astype(float)
        numbers[f"{name}_high"] = ends.str[1].astype(float)
    printed = numbers[numbers.method_a == "perpeft"]
    texts = (_against(rows, str(v)) for v, rows in printed.groupby("variant", sort=False))
    return StudyTable("comparisons", numbers, tuple(texts))


def _against(rows: pd.DataFrame, variant: str) -> TextTable:
    """PerPEFT with one variant against the other methods: one table each fits 80 characters."""
    return TextTable(
        f"perpeft ({variant}) against the other methods, test {rows.metric.iloc[0].upper()}",
        {
            "method": rows.method_b,
            "difference": with_interval(rows.difference, rows.interval_low, rows.interval_high),
            "p": map(p_text, rows.p_holm),
            "d": shown(rows.effect_size, "+.2f"),
            "p seeds": map(p_text, rows.p_seeds_holm),
        },
        "perpeft minus the method, × 100, with its uncorrected 95 % bootstrap interval; bold where "
        f"better with p < 0.05. p: paired t over users ({_span(rows.users)}), whose values are "
        f"means over seeds; p seeds: paired t over seeds ({_span(rows.seeds)}); both "
        "Holm-corrected over all variants. d: Cohen's, over users.",
        {"difference": (rows.p_holm < LEVEL) & (rows.difference > 0)},
    )


def metrics_table(trials: pd.DataFrame, users: pd.DataFrame, lengths: Sequence[int]) -> StudyTable:
    """HR, NDCG, MRR, coverage and popularity at each K of `lengths`; prints one table per K.

    `trials`, `users`: of `read_results`. Columns: method, variant, k, metric, mean, error (standard
    error over users, null for coverage and popularity), seeds.
    """
    of_ranks = user_means(
        final_users(trials, users), [f"{m}@{k}" for k in lengths for m in OF_RANKS]
    )
    names_and_lengths = of_ranks.metric.str.split("@")
    of_ranks["metric"] = names_and_lengths.str[0].astype(str)
    found = [of_ranks.assign(k=names_and_lengths.str[1].astype(int))]
    final = final_trials(trials)
    for k in lengths:
        for metric in ("coverage", "popularity"):
            values = final[f"test_{metric}"].map(lambda of_k, k=k: of_k[k - 1], na_action="ignore")
            by_cell = final.assign(mean=values.astype(float)).groupby(CELL, dropna=False)
            means = by_cell.agg(mean=("mean", "mean"), seeds=("seed", "nunique")).reset_index()
            found.append(means.assign(metric=metric, k=k))
    numbers = in_paper_order(pd.concat(found, ignore_index=True))
    numbers = numbers[[*CELL, "k", "metric", "mean", "error", "seeds"]]
    texts = [_of_length(numbers[numbers.k == k], k) for k in lengths if len(numbers)]
    return StudyTable("metrics", numbers, tuple(texts))


def _of_length(numbers: pd.DataFrame, k: int) -> TextTable:
    means = _wide(numbers, "metric")["mean"]
    hundredths = [*OF_RANKS, "coverage"]
    titles = {name: name.upper() if name in OF_RANKS else name for name in hundredths}
    return TextTable(
        f"Test metrics at {k}",
        {
            "method": means.index,
            **{titles[name]: shown(100 * means[name], ".2f") for name in hundredths},
            "popularity": shown(means.popularity, ".1f"),
        },
        "Means × 100, except popularity; bold: best of the column. "
        f"Coverage: share of all items that are in anyone's first {k}. Popularity: how often a "
        "recommended item occurs in training.",
        {titles[name]: means[name] == means[name].max() for name in hundredths},
    )


def slices_table(trials: pd.DataFrame, users: pd.DataFrame) -> StudyTable:
    """Test NDCG@20 of users in up to three parts, by `test_item_occurrences` and `history_length`.

    The parts have about equally many users. Columns: method, variant, by, low, high (the values
    that a part spans), users, mean, error (over users), seeds.
    """
    values = final_users(trials, users)
    columns = [*CELL, "by", "low", "high", "users", "mean", "error", "seeds"]
    if values.empty:
        return StudyTable("slices", pd.DataFrame(columns=columns), ())
    found, texts = [], []
    for name, words in _SLICES.items():
        # Equal values leave pandas without bins; they are one part.
        part = pd.qcut(values[name], 3, labels=False, duplicates="drop").fillna(0)
        ends = values.groupby(part)[name].agg(["min", "max"]).astype(int)
        cut = values.assign(low=part.map(ends["min"]), high=part.map(ends["max"]))
        numbers = in_paper_order(user_means(cut, ["ndcg@20"], ["low", "high"]).assign(by=name))
        found.append(numbers[columns])
        texts.append(_by_part(numbers, words))
    return StudyTable("slices", pd.concat(found, ignore_index=True), tuple(texts))


def _by_part(numbers: pd.DataFrame, words: str) -> TextTable:
    span = [
        f"{a}" if a == b else f"{a}–{b}" for a, b in zip(numbers.low, numbers.high, strict=True)
    ]
    numbers = numbers.assign(part=span)
    parts = numbers.sort_values(["low", "high"]).part.unique()
    wide, counts = _wide(numbers, "part"), numbers.groupby("part").users.max()
    return TextTable(
        f"Test NDCG@20 by {words}",
        {"method": wide.index}
        | {part: with_error(wide["mean"][part], wide["error"][part]) for part in parts},
        f"× 100, mean ± standard error over {', '.join(f'{counts[part]:,}' for part in parts)} "
        "users; bold: best of the column.",
        {part: wide["mean"][part] == wide["mean"][part].max() for part in parts},
    )


def _wide(numbers: pd.DataFrame, columns: str) -> pd.DataFrame:
    """One row per method and variant in the given order, one column per value and part."""
    label = labels(numbers)
    wide = numbers.assign(label=label).pivot(index="label", columns=columns)
    return wide.loc[label.unique()]


def _span(counts: pd.Series, between: str = "–") -> str:
    """The lowest and the highest count, or the only one; empty for none."""
    ends = sorted({counts.min(), counts.max()}) if len(counts) else []
    return between.join(map(str, ends))
