"""Which method serves users and items that first appear after training? Not in the paper.

Small (one catalogue, the figures in results/findings/cold_start.md):

    python studies/cold_start.py

Full:

    python studies/cold_start.py --datasets toyshop:101 toyshop:102 toyshop:103 --seeds 0 1 2
        --train.epochs 12 --train.personal-epochs 12 --train.validate-every 3

Protocol (perpeft_ray/models/cold_start.py). A quantile in time divides the interactions. Those
before the cut, with only their items, form a data set. An ordinary study trains every method on it
with the same learning rates, and each method takes its best by leave-one-out validation before the
cut. Each model is then exported and loaded, and new items are added by title and image, without an
id embedding. A new user gets the group of the nearest centroid, again for every event, from the
history up to it. Events are each user's first five interactions after the cut that have a history.
A user counts once per slice, with the mean over events and seeds. Intervals and tests are over
users, as in all studies.

Scientific: the method. Nuisance: the learning rate, the seed. Fixed: the rest; groups and
conditioning weight are what a search found on the former toyshop:0.
"""

from __future__ import annotations

import hashlib
import sys
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd
from rich.console import Console

from perpeft_ray.cli import parse, run, run_and_show
from perpeft_ray.config import (
    GroupingSettings,
    LossSettings,
    Method,
    PeftSettings,
    SearchSettings,
    StudyConfig,
    TrainSettings,
    Variant,
)

METHODS: tuple[Method, ...] = ("without_mm", "global", "perpeft")


@dataclass(frozen=True)
class ColdStart:
    """Data, cut and training."""

    datasets: tuple[str, ...] = ("toyshop",)
    """Data sources; each gets its own cut and study."""
    encoder: str = "toyshop-clip"
    """As in `perpeft study`."""
    seeds: tuple[int, ...] = (0,)
    """Training seeds."""
    quantile: float = 0.7
    """Share of interactions before the cut."""
    events: int = 5
    """Maximum events per user."""
    methods: tuple[Method, ...] = METHODS
    """Methods; perpeft is compared with each of the others."""
    variant: Variant = "lora"
    """PEFT variant."""
    rank: int = 4
    """Its rank."""
    groups: int = 6
    """Groups of PerPEFT."""
    conditioning_weight: float = 0.75
    """λ of PerPEFT."""
    learning_rates: tuple[float, ...] = StudyConfig().search.learning_rates
    """Tried by every method."""
    train: TrainSettings = field(default_factory=TrainSettings)
    storage: str = "results"
    """Folder of studies; results go to <storage>/cold_start/."""


def main() -> None:
    """Train before the cut, rank the events after it, compare."""
    cold = parse(ColdStart, description=__doc__)
    ranks = pd.concat(
        [ranks_of(cold, dataset, seed) for dataset in cold.datasets for seed in cold.seeds],
        ignore_index=True,
    )
    from perpeft_ray.store.files import whole_file

    with whole_file(Path(cold.storage) / "cold_start" / "ranks.parquet") as temporary:
        ranks.to_parquet(temporary, index=False)
    print_comparison(ranks, cold.variant)


def ranks_of(cold: ColdStart, dataset: str, seed: int) -> pd.DataFrame:
    """Ranks of all events under every method; columns dataset, seed, method, slice, user_id, rank.

    The study before the cut is <storage>/cold_start_…; a rerun reads it.
    """
    from perpeft_ray.data.folders import new_folder
    from perpeft_ray.data.sources import open_dataset
    from perpeft_ray.models.cold_start import hold_out, rank_events, write_training_folder
    from perpeft_ray.models.export import export_trial
    from perpeft_ray.models.loaded import LoadedModel
    from perpeft_ray.models.trained import choose_trial
    from perpeft_ray.store.folder import StudyFolder, storage_folder, study_place

    cache = storage_folder(cold.storage) / ".cache"
    whole = open_dataset(dataset, cache)
    held_out = hold_out(whole, cold.quantile, cold.events)
    key = hashlib.sha256(f"{whole.fingerprint} {held_out.cut}".encode()).hexdigest()[:8]
    training = cache / f"cold_start-{key}"
    if not training.is_dir():
        with new_folder(training) as temporary:
            write_training_folder(held_out, whole.root, temporary)
    before, events = held_out.training, held_out.events
    print(
        f"{dataset}: {len(before):,} interactions of {before.user_id.nunique():,} users with "
        f"{len(held_out.known_items):,} items before the cut; {len(events):,} events after it, "
        f"{events.new_user.sum()} of new users, {events.new_item.sum()} with new items"
    )
    config = _study(cold, f"parquet:{training}", f"cold_start_{key}_{seed}", seed)
    run_and_show(config)
    folder = StudyFolder.open(study_place(cold.storage, config.study))
    frames = []
    for method in cold.methods:
        with tempfile.TemporaryDirectory() as exported:
            export_trial(folder, choose_trial(folder, "best", method), Path(exported) / "model")
            model = LoadedModel(Path(exported) / "model")
            frames.append(rank_events(model, held_out, whole.root).assign(method=method))
    return pd.concat(frames, ignore_index=True).assign(dataset=dataset, seed=seed)


def print_comparison(ranks: pd.DataFrame, variant: str, metric: str = "ndcg@20") -> None:
    """Print each slice's means, and PerPEFT against the others with intervals over users."""
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 200)
    table = Table("slice", "method", "users", "events", metric.upper(), "PerPEFT minus it", "p")
    for row in comparison(ranks, variant, metric).itertuples():
        difference = "" if pd.isna(row.difference) else f"{100 * row.difference:+.2f}"
        if not pd.isna(row.low):
            difference += f" [{100 * row.low:.2f}, {100 * row.high:.2f}]"
        table.add_row(
            row.slice,
            row.method,
            str(row.users),
            str(row.events),
            f"{100 * row.mean:.2f}",
            difference,
            "" if pd.isna(row.p_value) else f"{row.p_value:.2g}",
        )
    console.print(table)
    console.print("× 100; 95 % bootstrap intervals over users; p: paired t over users, uncorrected")


def comparison(ranks: pd.DataFrame, variant: str, metric: str) -> pd.DataFrame:
    """One row per slice and method.

    Columns: slice, method, users, events, mean, and PerPEFT minus the method: difference, low and
    high (of the interval; null if the method's mean is 0), p_value (null for PerPEFT itself).
    """
    from perpeft_ray.models.cold_start import SLICES
    from perpeft_ray.report.statistics import compare_users, user_metric

    ranks = ranks.assign(value=user_metric(ranks["rank"].to_numpy(), metric))
    keys = ["dataset", "seed", "user_id"]
    rows = []
    for name in (name for name in SLICES if name in set(ranks.slice)):
        of_slice = ranks[ranks.slice == name]
        by_user = of_slice.groupby([*keys, "method"]).value.mean().unstack()
        events = len(of_slice[of_slice.method == "perpeft"])
        for method in ranks.method.unique():
            row = {"slice": name, "method": method, "events": events}
            row["users"] = len(by_user.groupby(["dataset", "user_id"]))
            row["mean"] = by_user.groupby(["dataset", "user_id"])[method].mean().mean()
            if method != "perpeft":
                pairs = by_user[["perpeft", method]].set_axis(["a", "b"], axis=1).reset_index()
                found = compare_users(pairs, ("perpeft", method, variant), metric)
                row |= {"difference": found.difference, "p_value": found.p_value}
                row["low"], row["high"] = found.interval
            rows.append(row)
    return pd.DataFrame(rows)


def _study(cold: ColdStart, dataset: str, name: str, seed: int) -> StudyConfig:
    return StudyConfig(
        dataset=dataset,
        encoder=cold.encoder,
        storage=cold.storage,
        study=name,
        seeds=(seed,),
        methods=cold.methods,
        parallel_workers=0,
        peft=PeftSettings(variant=cold.variant, rank=cold.rank),
        grouping=GroupingSettings(groups=cold.groups),
        loss=LossSettings(conditioning_weight=cold.conditioning_weight),
        train=cold.train,
        search=replace(
            SearchSettings(),
            learning_rates=cold.learning_rates,
            trials=len(cold.learning_rates),
            asha=False,
        ),
    )


if __name__ == "__main__":
    run(main)
