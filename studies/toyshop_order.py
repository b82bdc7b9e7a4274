"""Does the paper's order of methods hold on toyshop, on catalogues that had no part in its design?

Small (two fresh catalogues):

    python studies/toyshop_order.py --seeds 101 102

Full (the figures in results/LOG.md):

    python studies/toyshop_order.py

Groups and conditioning weight come from a search on toyshop:0. Then every seed s is a study of its
own on toyshop:s, generated and trained with s: each method, PerPEFT and baselines alike, is tried
with the same learning rates, takes its best by validation on that catalogue, and reads test once.
All have the same epochs and encoder. Prints the paired comparisons over all users, and how well
K-means found the planted groups.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd
from rich.console import Console

from perpeft_ray.cli import parse, run, run_study
from perpeft_ray.config import (
    GroupingSettings,
    LossSettings,
    PeftSettings,
    SearchSettings,
    StudyConfig,
    TrainSettings,
    Variant,
)


@dataclass(frozen=True)
class Order:
    """Which catalogues and how long."""

    seeds: tuple[int, ...] = (101, 102, 103, 104, 105)
    """Of catalogues and training alike; none was used while toyshop was designed."""
    variant: Variant = "lora"
    """PEFT variant."""
    storage: str = "results"
    """Folder of studies; one is written for the search and one a seed."""
    search_trials: int = 6
    """Trials of the search on toyshop:0."""
    train: TrainSettings = field(
        default_factory=lambda: TrainSettings(epochs=12, personal_epochs=12, validate_every=3)
    )
    learning_rates: tuple[float, ...] = StudyConfig().search.learning_rates
    """Tried by every method."""


def main() -> None:
    """Run the search, the studies and the comparison."""
    order = parse(Order, description=__doc__)
    common = StudyConfig(
        storage=order.storage,
        peft=PeftSettings(variant=order.variant, rank=4),
        train=order.train,
        parallel_workers=0,
        search=SearchSettings(learning_rates=order.learning_rates, trials=order.search_trials),
    )
    search = replace(common, study="toyshop_order_search", methods=("perpeft",))
    run_study(search)
    best = best_search_trial(Path(order.storage) / search.study)
    folders = []
    for seed in order.seeds:
        study = replace(
            common,
            dataset=f"toyshop:{seed}",
            study=f"toyshop_order_{seed}",
            seeds=(seed,),
            grouping=GroupingSettings(groups=int(best.groups)),
            loss=LossSettings(conditioning_weight=float(best.conditioning_weight)),
            search=replace(common.search, trials=len(order.learning_rates), asha=False),
        )
        run_study(study)
        folders.append(Path(order.storage) / study.study)
    print_comparison(folders)


def best_search_trial(folder: Path) -> pd.Series:
    """The row of the search's best trial by validation NDCG@20."""
    trials = pd.read_parquet(folder / "trials")
    searched = trials[(trials.phase == "search") & (trials.status == "COMPLETE")]
    return searched.loc[searched.valid_ndcg_at_20.idxmax()]


def print_comparison(folders: list[Path]) -> None:
    """Means of all methods, PerPEFT against each of them, and the Rand index of the groups."""
    from perpeft_ray.results.comparisons import comparisons

    console = Console(width=None if sys.stdout.isatty() else 160)
    trials = pd.concat([pd.read_parquet(folder / "trials") for folder in folders])
    final = trials[(trials.phase == "ablation") & (trials.status == "COMPLETE")]
    means = final.groupby("method").test_ndcg_at_20.agg(["mean", "std", "count"])
    console.print((means.sort_values("mean") * [100, 100, 1]).round(2).to_string())
    for text in comparisons(folders).printed:
        console.print(text.terminal())
    for folder in folders:
        console.print(f"{folder.name}: adjusted Rand index {rand_index(folder):.2f}")


def rand_index(folder: Path) -> float:
    """Adjusted Rand index between PerPEFT's groups in a study and the planted ones."""
    from sklearn.metrics import adjusted_rand_score

    from perpeft_ray.data.sources import open_dataset
    from perpeft_ray.data.toyshop import planted_groups

    trials = pd.read_parquet(folder / "trials")
    trial = trials[(trials.phase == "ablation") & (trials.method == "perpeft")].iloc[0]
    users = pd.read_parquet(folder / "users" / f"{trial.trial_id}.parquet")
    root = open_dataset(trial.dataset, folder.parent / ".cache").root
    both = users.merge(planted_groups(root), on="user_id", suffixes=("", "_planted"))
    return float(adjusted_rand_score(both.group_planted, both.group))


if __name__ == "__main__":
    run(main)
