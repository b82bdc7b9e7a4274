"""The verdict in plain words: does PerPEFT pay here, how sure is that, and what to use."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import pandas as pd

from perpeft_ray.config import SIMPLE_METHODS, VARIED, VECTOR_METHODS, StudyConfig
from perpeft_ray.report.power import rounded, seeds_needed, users_needed
from perpeft_ray.report.statistics import LEVEL, Comparison
from perpeft_ray.report.summary import CELL, SELECTION, expected_trials, final_trials
from perpeft_ray.report.text import with_interval

TITLES = {"lora": "LoRA", "ia3": "(IA)³", "iisan": "IISAN"}
ADVICE = {
    "popularity": "counting is enough here",
    "item_knn": "counting is enough here",
    "without_mm": "do not use content here",
    "frozen_mm": "do not adapt the encoder here",
    "global": "do not personalise here",
    "large_global": "one larger module is enough here",
    "without_group_negatives": "set the conditioning weight to 0 here",
    "random_grouping": "grouping by interest adds nothing here",
}
"""Advice if a method is better than PerPEFT."""
RIVALS = ("popularity", "item_knn", "without_mm", "frozen_mm", "global")
"""Simpler methods that PerPEFT has to beat."""
NOT_EXPORTED = {"random_grouping", *VECTOR_METHODS}
"""Methods that cannot serve a new user: the group or vector is unknown."""
MIN_TRIALS = 5
"""Least complete search trials of a variant; with fewer its setting is close to random."""

Choice = tuple[str, str | None]
"""A method and its variant."""


@dataclass(frozen=True)
class Verdict:
    """The verdict in sentences."""

    sentences: tuple[str, ...]
    """One per variant, then one for each other method that is better than PerPEFT."""
    options: tuple[str, ...]
    """Options of the command line that answer the notes."""
    notes: tuple[str, ...]
    """Notes on what is incomplete or too small to decide."""
    use: Choice | None
    """The method to use; None without a complete trial."""
    decided: bool
    """Whether the tests decide it; otherwise validation does."""

    def lines(self, study: str) -> list[str]:
        """The verdict as printed; `study`: its folder or URI."""
        notes = [f"Note: {'; '.join(self.notes)}."] if self.notes else []
        if self.use is None:
            return [*self.sentences, *notes]
        method, variant = self.use
        named = f"`{method}`" + (f" with {_title(variant)}" if variant else "")
        what = (
            "it only counts, so there is no model to export"
            if method in SIMPLE_METHODS
            else f"perpeft export {shlex.quote(study)} my_model"
            + ("" if method == "perpeft" else f" --method {method}")
        )
        lead = f"Use {named}" if self.decided else f"Not decided; best in validation is {named}"
        return [*self.sentences, f"{lead}: {what}", *notes]


def verdict(study: StudyConfig, trials: pd.DataFrame, compared: Sequence[Comparison]) -> Verdict:
    """The verdict on a study.

    `trials`: of `read_results`; `compared`: results of `compare_all`, from the users' ranks. The
    tests decide which method is better; where they do not, validation chooses.
    """
    final = final_trials(trials)
    lead = _best(final, ["perpeft"])
    variants = study.values("variant") if "perpeft" in study.methods else ()
    ordered = sorted(variants, key=lambda variant: lead is None or variant != lead[1])
    sentences = [_of_variant(study, variant, trials, compared) for variant in ordered]
    of_lead = {c.method_b: c for c in _of_perpeft(compared) if lead and c.variant == lead[1]}
    better = [c for c in of_lead.values() if c.significant and c.difference < 0]
    better.sort(key=lambda comparison: comparison.difference)
    sentences += [
        f"`{comparison.method_b}` is better than PerPEFT ({_title(comparison.variant)}) by "
        f"{_effect(comparison, loss=True)}, {_p(comparison.p_holm)}: "
        f"{ADVICE.get(comparison.method_b, 'prefer it here')}."
        for comparison in better
        if comparison.method_b not in ("global", "frozen_mm")  # said already
    ]
    found = list(_notes(study, trials, final))
    notes = tuple(note for note, _ in found)
    options = tuple(option for _, option in found if option)
    winners = [c.method_b for c in better if c.method_b not in NOT_EXPORTED]
    if winners:
        return Verdict(tuple(sentences), options, notes, _best(final, winners[:1]), decided=True)
    beaten = {name for name, c in of_lead.items() if c.significant and c.difference > 0}
    level = [method for method in RIVALS if method in set(final.method) - beaten]
    use = lead if lead and not level else _best(final, ["perpeft", *level])
    return Verdict(tuple(sentences), options, notes, use, decided=bool(lead) and not level)


def _of_perpeft(compared: Iterable[Comparison]) -> list[Comparison]:
    return [comparison for comparison in compared if comparison.method_a == "perpeft"]


def _best(final: pd.DataFrame, methods: Sequence[str]) -> Choice | None:
    """The method and variant with the highest mean validation NDCG@20; None without any."""
    rows = final[final.method.isin(methods) & final[SELECTION].notna()]
    if rows.empty:
        return None
    means = rows.groupby(["method", "variant"], dropna=False, sort=False)[SELECTION].mean()
    method, variant = means.idxmax()
    return method, None if pd.isna(variant) else variant


def _of_variant(
    study: StudyConfig, variant: str, trials: pd.DataFrame, compared: Sequence[Comparison]
) -> str:
    """PerPEFT against one global module, and the frozen encoder, with one variant."""
    own = {c.method_b: c for c in _of_perpeft(compared) if c.variant == variant}
    title = _title(variant)
    if "global" not in own:
        return f"{title}: {_why_not(study, variant, trials)}."
    first = own["global"]
    if first.users == 1:
        return f"{title}: not compared, one user is not enough."
    sample = f"{_p(first.p_holm)}, {first.users:,} users, {_seeds(first.seeds)}"
    if first.significant and first.difference > 0:
        text = f"PerPEFT beats one global module by {_effect(first)} ({sample})"
    elif first.significant:
        text = f"one global module is better than PerPEFT by {_effect(first, loss=True)} ({sample})"
    else:
        effect = f"{_effect(first, plus=True)} over global, {_not_significant(first, compared)}"
        text = f"{effect} ({sample}); {_needed(first, compared)}"
    frozen = own.get("frozen_mm")
    if frozen is None:
        return f"{title}: {text}."
    if not frozen.significant:
        text += f"; {_effect(frozen, plus=True)} over frozen, {_not_significant(frozen, compared)}"
    elif frozen.difference < 0:
        text += f"; the frozen encoder is better than PerPEFT by {_effect(frozen, loss=True)}"
    elif first.significant and first.difference > 0:
        text += f", and the frozen encoder by {_effect(frozen)}"
    else:
        text += f"; PerPEFT beats the frozen encoder by {_effect(frozen)}"
    return f"{title}: {text}."


def _not_significant(comparison: Comparison, compared: Sequence[Comparison]) -> str:
    """Says by what, where the uncorrected interval, which excludes 0, lets expect otherwise."""
    low, high = comparison.interval
    if low <= 0 <= high:
        return "not significant"
    if comparison.p_value >= LEVEL:
        return "not significant in a t test"
    count = len(_of_perpeft(compared))
    return f"not significant after Holm's correction for {count} comparisons"


def _effect(comparison: Comparison, *, loss: bool = False, plus: bool = False) -> str:
    """The effect with its interval, such as `58 % [41, 77]`; `loss`: of the other over PerPEFT.

    Where too few users have a hit for a ratio's interval, in NDCG@20.
    """
    value, ends = comparison.ratio, comparison.ratio_interval
    if math.isnan(ends[0]):
        value, ends = comparison.difference, comparison.interval
        if loss:
            value, ends = -value, (-ends[1], -ends[0])
        [text] = with_interval([value], ends[:1], ends[1:], "+.2f" if plus else ".2f")
        return f"{text} in NDCG@20 × 100"
    if loss:
        value, ends = 1 / value, (1 / ends[1], 1 / ends[0])
    effects = [100 * (ratio - 1) for ratio in (value, *ends)]
    digits = 0 if abs(effects[2] - effects[1]) >= 10 else 1
    rounded_effects = [round(effect, digits) + 0.0 for effect in effects]  # no -0
    value_text, low, high = (f"{effect:.{digits}f}" for effect in rounded_effects)
    sign = "+" if plus and rounded_effects[0] >= 0 else ""
    return f"{sign}{value_text} % [{low}, {high}]"


def _needed(comparison: Comparison, compared: Sequence[Comparison]) -> str:
    """Users or seeds that would show the observed difference, at the level of Holm's next step."""
    open_ones = sum(not other.significant for other in _of_perpeft(compared))
    alpha = LEVEL / open_ones
    users = users_needed(comparison.difference, comparison.deviation, alpha)
    if users <= comparison.users:  # all differ by the same
        return "more users would show it"
    if users > 1000 * comparison.users:
        return "no study could show so small a difference"
    seeds = seeds_needed(comparison, comparison.difference, alpha)
    least = "at least " if comparison.seeds == 1 else ""
    or_seeds = "" if math.isinf(seeds) else f" or {least}{_seeds(int(seeds))}"
    return f"about {rounded(users)} users{or_seeds} would show it"


def _why_not(study: StudyConfig, variant: str, trials: pd.DataFrame) -> str:
    """The reason why PerPEFT and `global` cannot be compared."""
    if "global" not in study.methods:
        return "not compared, `global` is not among the study's methods"
    of_variant = trials[trials.variant == variant]
    done = final_trials(of_variant)
    for method in ("perpeft", "global"):
        if not (done.method == method).any():
            failed = int(((of_variant.method == method) & (of_variant.status == "FAIL")).sum())
            return f"not compared, no trial of `{method}` is complete" + (
                f" ({failed} failed)" if failed else ""
            )
    return "not compared, `perpeft` and `global` have no seed in common"


def _notes(
    study: StudyConfig, trials: pd.DataFrame, final: pd.DataFrame
) -> Iterator[tuple[str, str]]:
    """Notes that a reader needs before relying on the verdict, and the options that answer them."""
    ablation = trials[trials.phase == "ablation"]
    done, expected = int((ablation.status == "COMPLETE").sum()), expected_trials(study)
    if done < expected:
        failed = int((ablation.status == "FAIL").sum())
        yield f"{done} of {expected} compared trials are complete, {failed} failed", ""
    if study.encoder == "toyshop-clip" and not study.is_toyshop:
        yield "toyshop-clip knows only the toyshop's drawings: pass a real `--encoder`", ""
    rates = study.values("learning_rate")
    searched = trials[(trials.phase == "search") & (trials.status != "FAIL")]
    tried = searched.groupby(CELL, dropna=False).learning_rate.transform("nunique")
    own_rate = final.merge(searched.loc[tried > 1, CELL].drop_duplicates(), on=CELL)
    highest, lowest = own_rate.learning_rate >= max(rates), own_rate.learning_rate <= min(rates)
    edges = [
        f"{name} ({rate:g}) for {_cells(own_rate[at_edge])}"
        for name, rate, at_edge in (
            ("highest", max(rates), highest),
            ("lowest", min(rates), lowest),
        )
        if at_edge.any()
    ]
    if edges:
        low, high = (
            min(rates) / (2 if lowest.any() else 1),
            max(rates) * (2 if highest.any() else 1),
        )
        option = f"--search.learning-rate {low:g} {high:g}"
        yield f"the best learning rate was the {', the '.join(edges)}: search a wider range", option
    rising = final[final.still_improving.eq(True)]
    if len(rising):
        option = f"--train.personal-epochs {2 * study.train.personal_epochs}"
        yield f"still improving at the last epoch: {_cells(rising)}: train longer", option
    searched = searched[searched.method == "perpeft"]
    counts = searched[searched.status == "COMPLETE"].variant.value_counts()
    settings = math.prod(len(study.values(name)) for name in VARIED)
    least = min(MIN_TRIALS, settings)
    few = [v for v in study.values("variant") if counts.get(v, 0) < least]
    if few and len(searched) and "perpeft" in study.methods:
        named = ", ".join(map(_title, few))
        option = f"--search.trials {least * len(study.values('variant'))}"
        yield f"fewer than {least} search trials for {named}: settings are close to random", option


def _cells(rows: pd.DataFrame) -> str:
    """The methods and variants of trials in words, or their number."""
    cells = [
        row.method if pd.isna(row.variant) else f"{row.method} {_title(row.variant)}"
        for row in rows.drop_duplicates(["method", "variant"]).itertuples()
    ]
    return ", ".join(cells) if len(cells) <= 2 else f"{len(cells)} methods and variants"


def _title(variant: str | None) -> str:
    return TITLES.get(variant or "", variant or "")


def _p(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"


def _seeds(count: int) -> str:
    return f"{count} seed" + ("s" if count > 1 else "")
