"""Does the paper's order of methods hold on toyshop, on catalogues that had no part in its design?

Small (one fresh catalogue):

    python studies/toyshop_order.py --seeds 101

Full (the figures in results/reference/toyshop_order.md):

    python studies/toyshop_order.py --out results/reference/toyshop_order.md

Seed s generates and trains toyshop:s with the settings of the toyshop preset. Each method tries the
preset's learning rates, PerPEFT also each conditioning weight above 0; the best by validation reads
test. PerPEFT's ablations take its settings. Trials run one after another in this process, without
Ray; trained ones are read from the cache.

Scientific: method. Nuisance: learning rate, conditioning weight, seed. Fixed: the rest.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from perpeft_ray.cli import parse, run
from perpeft_ray.config import Method, TrialConfig, Variant
from perpeft_ray.config.presets import preset

PRESET = preset("toyshop")
BASELINES: tuple[Method, ...] = ("without_mm", "frozen_mm", "global")
ABLATIONS: tuple[Method, ...] = ("without_group_negatives", "random_grouping")
ORDERINGS: tuple[tuple[Method, Method], ...] = (
    ("frozen_mm", "without_mm"),
    ("global", "frozen_mm"),
    *(("perpeft", method) for method in ("global", "frozen_mm", "without_mm", *ABLATIONS)),
)
"""(above, below) in the means of the paper's Tables 2 and 3."""


@dataclass(frozen=True)
class Order:
    """Catalogues, and the methods' choices."""

    seeds: tuple[int, ...] = (101, 102, 103, 104, 105)
    """Seeds of catalogues and training; none was used to design the toyshop."""
    variant: Variant = "lora"
    """PEFT variant."""
    rank: int = 4
    """Rank of the PEFT modules."""
    groups: int = 6
    """K-means clusters."""
    learning_rates: tuple[float, ...] = PRESET.search.learning_rates
    """Tried by PerPEFT and by every baseline."""
    conditioning_weights: tuple[float, ...] = PRESET.search.conditioning_weights
    """Tried by PerPEFT with every learning rate."""
    cache: Path = Path("results/.cache")
    """Folder for catalogues and trained trials."""
    out: Path | None = None
    """Markdown file to write the tables to."""


def main() -> None:
    """Run the trials and print the comparison."""
    order = parse(Order, description=__doc__)
    users, catalogues = zip(*(one_catalogue(order, seed) for seed in order.seeds), strict=True)
    text = report(pd.concat(users, ignore_index=True), pd.DataFrame(catalogues))
    print(text)
    if order.out is not None:
        order.out.write_text(text + "\n")


def one_catalogue(order: Order, seed: int) -> tuple[pd.DataFrame, dict[str, object]]:
    """Test NDCG@20 of every user, one column per method; and this catalogue's row."""
    import torch
    from sklearn.metrics import adjusted_rand_score

    from perpeft_ray.data.sources import open_dataset
    from perpeft_ray.data.toyshop import planted_groups
    from perpeft_ray.report.statistics import user_metric
    from perpeft_ray.train.outcome import TrialOutcome
    from perpeft_ray.train.trial import run_trial
    from perpeft_ray.train.workspace import prepare

    torch.set_num_threads(1)
    dataset = f"toyshop:{seed}"
    workspace = prepare(dataset, PRESET.encoder, order.cache)

    def outcome(config: TrialConfig, *, test: bool) -> TrialOutcome:
        return run_trial(config, workspace, lambda record: None, test=test)

    def best(candidates: Iterable[TrialConfig]) -> TrialConfig:
        tried = list(candidates)
        if len(tried) == 1:
            return tried[0]
        return max(tried, key=lambda config: outcome(config, test=False).valid.ndcg_at_20)

    def trial(method: Method, lr: float, weight: float) -> TrialConfig:
        return PRESET.trial(
            method,
            seed=seed,
            variant=order.variant,
            rank=order.rank,
            groups=order.groups,
            conditioning_weight=weight,
            learning_rate=lr,
        )

    settings = list(itertools.product(order.learning_rates, order.conditioning_weights))
    perpeft = best(trial("perpeft", lr, weight) for lr, weight in settings)
    weight = perpeft.conditioning_weight
    assert weight is not None
    chosen = {
        **{m: best(trial(m, lr, weight) for lr in order.learning_rates) for m in BASELINES},
        **{m: trial(m, perpeft.learning_rate, weight) for m in ABLATIONS},
        "perpeft": perpeft,
    }
    outcomes = {method: outcome(config, test=True) for method, config in chosen.items()}
    for method, found in outcomes.items():
        assert found.test is not None
        note = ", still improving" if found.still_improving else ""
        print(f"{dataset} {method}: {100 * found.test.ndcg_at_20:.2f}{note}", flush=True)

    reference = outcomes["perpeft"].users
    planted = planted_groups(open_dataset(dataset, order.cache.resolve()).root)
    in_planted = planted.set_index("user_id").group[reference.user_id]
    evaluated = reference.test_rank >= 0
    users = pd.DataFrame({"dataset": dataset, "seed": seed, "user_id": reference.user_id})
    for method, found in outcomes.items():
        users[method] = user_metric(found.users.test_rank, "ndcg@20")
    row: dict[str, object] = {
        "catalogue": dataset,
        **{m: f"{100 * users[m][evaluated].mean():.2f}" for m in outcomes},
        "learning rate": f"{perpeft.learning_rate:g}",
        "λ": f"{weight:g}",
        "adjusted Rand index": f"{adjusted_rand_score(in_planted, reference.group):.2f}",
    }
    return users[evaluated], row


def report(users: pd.DataFrame, catalogues: pd.DataFrame) -> str:
    """The tables of means and of orderings, as Markdown."""
    from perpeft_ray.report.statistics import compare_users, holm
    from perpeft_ray.report.text import p_text

    found = [
        compare_users(users.rename(columns={a: "a", b: "b"}), (a, b, None), "ndcg@20")
        for a, b in ORDERINGS
    ]
    corrected = holm(np.array([comparison.p_value for comparison in found]))
    rows = []
    for (a, b), comparison, p in zip(ORDERINGS, found, corrected, strict=True):
        of_catalogues = users.groupby("dataset")[[a, b]].mean()
        above = (of_catalogues[a] > of_catalogues[b]).sum()
        low, high = (100 * end for end in comparison.interval)
        ratio_low, ratio_high = comparison.ratio_interval
        rows.append(
            {
                "ordering": f"{a} > {b}",
                "difference × 100": f"{100 * comparison.difference:+.2f} [{low:.2f}, {high:.2f}]",
                "ratio": f"{comparison.ratio:.2f} [{ratio_low:.2f}, {ratio_high:.2f}]",
                "p": f"{comparison.p_value:.1g}",
                "p (Holm)": p_text(p),
                "catalogues": f"{above} of {len(of_catalogues)}",
            }
        )
    return "\n".join(
        [
            "Test NDCG@20 × 100, mean over users:\n",
            markdown(catalogues),
            f"\nOrderings of the paper, {len(users):,} users, paired t test over users:\n",
            markdown(pd.DataFrame(rows)),
        ]
    )


def markdown(table: pd.DataFrame) -> str:
    """A table of text as Markdown."""
    lines = [table.columns, ["---"] * len(table.columns), *table.itertuples(index=False)]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


if __name__ == "__main__":
    run(main)
