"""A study in practice: who gains, what groups like, what it costs, what to try next."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from perpeft_ray.config import StudyConfig
from perpeft_ray.data.interactions import open_tables
from perpeft_ray.data.sources import cached_folder
from perpeft_ray.report.statistics import first_pairs, group_gains, user_values
from perpeft_ray.report.summary import SELECTION, costs, final_trials
from perpeft_ray.report.text import StudyTable, TextTable, shown, with_interval
from perpeft_ray.report.verdict import Verdict
from perpeft_ray.store.folder import StudyFolder

_LEAST_USERS = 5
"""Least users of a group with a word for the word to be named."""


def groups_table(
    trials: pd.DataFrame, users: pd.DataFrame, titles: pd.DataFrame | None = None
) -> StudyTable:
    """PerPEFT's gain over `global` in each group of its best variant's first seed.

    `trials`, `users`: of `read_results`; `titles`: of `titles_of_users`. Columns: variant, group
    (while testing), users, perpeft, global, gain, gain_low, gain_high (95 % bootstrap interval over
    the group's users), words.
    """
    columns = ["variant", "group", "users", "perpeft", "global"]
    columns += ["gain", "gain_low", "gain_high", "words"]
    best = _best(trials)
    if best is None:
        return StudyTable("groups", pd.DataFrame(columns=columns), ())
    pairs = first_pairs(user_values(trials, users), best.variant)
    words = {} if titles is None else distinctive_words(pairs.set_index("user_id").group, titles)
    gains = group_gains(pairs).rename(columns={"a": "perpeft", "b": "global"})
    listed = [", ".join(words.get(group, ())) for group in gains.group]
    numbers = gains.assign(variant=best.variant, words=listed)[columns]
    text = TextTable(
        f"Gain of perpeft ({best.variant}) over global by group",
        {
            "group": shown(numbers.group),
            "users": shown(numbers.users, ","),
            "NDCG@20": shown(100 * numbers.perpeft, ".2f"),
            "gain": with_interval(numbers.gain, numbers.gain_low, numbers.gain_high),
            "has more often": numbers.words,
        },
        "Test NDCG@20 × 100, first seed; 95 % bootstrap interval over the group's users, bold "
        "where above 0. Has more often: words of titles in the group's histories.",
        {"gain": numbers.gain_low > 0},
    )
    return StudyTable("groups", numbers, (text,))


def distinctive_words(
    groups: pd.Series, titles: pd.DataFrame, most: int = 3
) -> dict[int, list[str]]:
    """Per group, words that its users have more often than all users, most distinctive first.

    `groups`: by user_id; `titles`: of `titles_of_users`. A word counts once per user; its weight is
    its share in the group times the logarithm of that share over the share among all.
    """
    own = titles[titles.user_id.isin(groups.index)]
    words = own.assign(word=own.title.str.lower().str.findall(r"[^\W\d_]{3,}")).explode("word")
    pairs = words[["user_id", "word"]].dropna().drop_duplicates()
    counts = pd.crosstab(pairs.word, pairs.user_id.map(groups))
    if counts.empty:
        return {}
    share = counts / groups.value_counts().reindex(counts.columns)
    of_all = counts.sum(axis=1) / len(groups)
    with np.errstate(divide="ignore", invalid="ignore"):
        score = share * np.log(share.div(of_all, axis=0))
    score = score.where(counts >= _LEAST_USERS, 0.0)
    return {
        int(group): [word for word, value in column.nlargest(most).items() if value > 0]
        for group, column in score.items()
    }


def titles_of_users(folder: StudyFolder) -> pd.DataFrame | None:
    """Each interaction's user_id and title (null for none); None if the data are not here."""
    packed = folder.path / "data"
    place = packed if packed.is_dir() else cached_folder(folder.config.dataset, folder.cache)
    if place is None:
        return None
    interactions, items = (t.read().to_pandas() for t in open_tables(str(place), place))
    return interactions.merge(items, on="item_id")[["user_id", "title"]]


def in_practice(
    study: StudyConfig, trials: pd.DataFrame, groups: pd.DataFrame, verdict: Verdict
) -> list[str]:
    """Computed sentences for a decision about PerPEFT.

    `groups`: the numbers of `groups_table`.
    """
    sentences = [*_who_gains(groups), *_what_it_costs(trials)]
    options = [*verdict.options]
    if len(study.seeds) == 1:
        options.append("--seeds 0 1 2")
    if len(groups) and groups.users.min() < 50:
        fewer = max(int(groups.users.sum() // 50), 2)
        if fewer < len(groups):
            options.append(f"--search.groups {fewer}")
    if options:
        sentences.append(f"To try next, under another --study: {' '.join(options)}")
    return sentences


def _who_gains(groups: pd.DataFrame) -> Iterator[str]:
    if groups.empty:
        return
    gain, lose = groups[groups.gain_low > 0], groups[groups.gain_high < 0]
    total = groups.users.sum()
    if not len(gain) and not len(lose):
        yield f"In none of {len(groups)} groups is a gain or loss against one global module clear."
        return
    yield (
        f"{len(gain)} of {len(groups)} groups gain over one global module, with "
        f"{gain.users.sum() / total:.0%} of the users, and {len(lose)} lose; for the others it is "
        "not clear."
    )
    if len(gain):
        top = groups.loc[groups.gain.idxmax()]
        has = f", who have more often {top.words}" if top.words else ""
        [gained] = with_interval([top.gain], [top.gain_low], [top.gain_high])
        yield (
            f"Group {top.group} gains most: {gained} in NDCG@20 × 100 for {top.users:,} users{has}."
        )


def _what_it_costs(trials: pd.DataFrame) -> Iterator[str]:
    best = _best(trials)
    if best is None:
        return
    groups, size = int(best.groups), int(best.trainable_parameters / best.groups)
    yield (
        f"To serve it takes one encoder of {best.encoder_parameters:,} parameters and {groups} "
        f"adapters of {size:,} each; every item is encoded {groups} times, once with one global "
        "module."
    )
    medians = costs(trials)
    medians = medians[medians.variant == best.variant]
    stages = ["stage1_seconds", "stage2_seconds", "stage3_seconds"]
    seconds = medians.groupby("method")[stages].median().sum(axis=1)
    if "global" in seconds:
        yield (
            f"A trial trained for {seconds['perpeft']:,.0f} s, one with a global module for "
            f"{seconds['global']:,.0f} s."
        )


def _best(trials: pd.DataFrame) -> pd.Series | None:
    """The row of PerPEFT's best final trial by validation with a matching `global` trial."""
    final = final_trials(trials)
    of_global = set(final[final.method == "global"].variant)
    own = final[(final.method == "perpeft") & final.variant.isin(of_global)]
    return None if own.empty else own.loc[own[SELECTION].idxmax()]
